"""Families: the wrappers of one context, which share what is set on `django.db.connection`.

In Django a wrapper belongs to its context, and a request has one. Here every chain of calls needs
a wrapper of its own, because concurrent tasks have transactions of their own; so one context has
several: its *family* for an alias. What a project or a tool sets on one member, replaced methods
included, is state of the context and is set on all members, later ones included. What Django,
Nuages, or a backend at work on its session sets is the member's own.

The families are in a contextvar: tasks and threads inherit them, the handler begins a request with
none, and elsewhere the first use makes them. Members that serve nobody serve the context's next
chain, which saves making a wrapper for every call.
"""

from __future__ import annotations

import _thread
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuages.db.scopes.chain import Chain
    from nuages.db.scopes.lease import Lease

_OF_SETTINGS = ("timezone", "timezone_name")
"""Cached settings on a wrapper; the settings may change before the wrapper serves again."""


_lock = threading.RLock()
"""Held while the members of a family, or what is set on them, changes: one for all families,
because each context makes some."""


class Family:
    """The wrappers of one context for one alias."""

    __slots__ = ("__weakref__", "_members", "facade", "idle", "state")

    def __init__(self) -> None:
        self._members: list[weakref.ref[Lease]] = []
        self.state: dict[str, Any] = {"_execute_wrappers": []}
        """What was set on the context's connection, by attribute."""
        self.idle: list[Lease] = []
        """Members that serve no chain."""
        self.facade: Lease | None = None
        """The member that serves bare coroutine code."""

    def join(self, wrapper: Lease) -> None:
        """Make a new wrapper a member."""
        with _lock:
            if len(self._members) >= 16:
                self._members = [one for one in self._members if one() is not None]
            self._members.append(weakref.ref(wrapper))
            own = vars(wrapper)
            own["family"] = self
            for name, value in self.state.items():
                own[name] = wrapper.as_member(name, value)

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of all members."""
        with _lock:
            self.state[name] = value
            for member in self._living():
                vars(member)[name] = member.as_member(name, value)

    def delete(self, name: str) -> None:
        """Delete an attribute of all members, as far as they have it."""
        with _lock:
            self.state.pop(name, None)
            for member in self._living():
                vars(member).pop(name, None)

    def begin_in_child(self) -> list[Lease]:
        """Return the members (after a fork). What is set on them stays."""
        global _lock
        # A thread that does not exist in the child may have held the lock.
        _lock = threading.RLock()
        return self._living()

    def _living(self) -> list[Lease]:
        return [member for one in self._members if (member := one()) is not None]


_families: ContextVar[dict[str, Family] | None] = ContextVar("nuages.db.families", default=None)


def known_family(alias: str) -> Family | None:
    """Return the calling context's family for `alias`, if it has one."""
    families = _families.get()
    return None if families is None else families.get(alias)


def family_for(alias: str) -> Family:
    """Return the calling context's family for `alias`; make it where there is none."""
    families = _families.get()
    if families is None:
        families = {}
        _families.set(families)
    found = families.get(alias)
    # Threads of one context may come here at once.
    return families.setdefault(alias, Family()) if found is None else found


def forget_family(alias: str) -> bool:
    """Let the calling context begin anew for `alias`; tell whether there was anything."""
    families = _families.get()
    return families is not None and families.pop(alias, None) is not None


def begin_with(wrapper: Lease) -> None:
    """Let the calling context share what was set on a thread's own wrapper."""
    families = _families.get()
    if families is not None and wrapper.family is not None:
        families.setdefault(wrapper.alias, wrapper.family)


def families_in_context() -> list[Family]:
    """Return the families of the calling context."""
    return list((_families.get() or {}).values())


def has_families() -> bool:
    """Tell whether the calling context has used a connection."""
    return bool(_families.get())


class OwnFamilies:
    """A context manager: its block has no wrapper and no state of the context around it."""

    __slots__ = ("_outer",)

    def __enter__(self) -> None:
        self._outer = _families.get()
        _families.set({})

    def __exit__(self, *exc_info: object) -> None:
        _families.set(self._outer)


def serve(wrapper: Lease, chain: Chain) -> None:
    """Let a member serve `chain`, in the calling thread."""
    vars(wrapper).update(serves=chain, _thread_ident=_thread.get_ident())


def take_idle(alias: str) -> Lease | None:
    """Take a member that serves nobody, if the calling context has one."""
    family = known_family(alias)
    if family is None or not family.idle:
        return None
    try:
        return family.idle.pop()
    except IndexError:  # another thread was first
        return None


def dismiss(wrapper: Lease, chain: Chain | None) -> None:
    """Note that a member serves `chain` no more: it may serve the context's next one."""
    family = wrapper.family
    if family is None or wrapper.serves is not chain or wrapper.role != "lease":
        return
    vars(wrapper)["serves"] = None
    if wrapper.seen_by_threads:
        return
    if wrapper.scope is None and wrapper.connection is None and wrapper.session is None:
        for cached in _OF_SETTINGS:
            vars(wrapper).pop(cached, None)
        family.idle.append(wrapper)
