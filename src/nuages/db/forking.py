"""Forks: a child has connections of its own, and leaves the parent's alone.

A forked process has copies of all that its parent had, sockets and open transactions included. One
byte that the child sent there would end the parent's statement, or be answered to the wrong
process. So the child forgets the connections that its code could reach, without I/O, and opens new
ones. A block that was open goes on in the parent alone: the child's statements in it are refused
(`ForkedBlock`), and leaving it sends nothing. What was set on `django.db.connection` stays.

Of the child's code there is only what forked: the other threads are gone, and so are all loops.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from django.db import connections

from nuages.db.backends.base.base import LoopWrapper
from nuages.db.routing import Storage
from nuages.db.scopes import chain, family, tree

_of_parent: list[Any] = []
"""Connections of the parent, kept: drivers warn of one that is collected, or end its session."""


def _wrappers_at_hand() -> list[LoopWrapper]:
    """Return the wrappers that the code that forked could reach."""
    storage = vars(connections).get("_connections")
    found: list[Any] = storage.thread_wrappers() if isinstance(storage, Storage) else []
    found += [node.wrapper for node in tree.nodes_in_context()]
    for one in family.families_in_context():
        found += one.begin_in_child()
    each = {id(wrapper): wrapper for wrapper in found if isinstance(wrapper, LoopWrapper)}
    return list(each.values())


def _after_fork() -> None:
    _of_parent.extend(wrapper.leave_to_parent() for wrapper in _wrappers_at_hand())
    chain.forget_thread_chain()
    tree.forget_context()


@functools.cache
def install_hook() -> None:
    """Have every forked child leave the parent's connections alone. Idempotent."""
    os.register_at_fork(after_in_child=_after_fork)
