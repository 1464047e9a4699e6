"""The schema editor's connection: the same one for all of a migration.

In a transaction that is so by itself. Where a migration is not atomic, a lease of the pool could
be another session after every wait, and what the editor has set in the session (SQLite's foreign
keys off, a lock timeout) would be gone: so the connection is held.
"""

from __future__ import annotations

import sys
from typing import Any

from nuages.bridge import current_bridge
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.scopes.chain import current_chain
from nuages.db.scopes.scope import open_scope
from nuages.db.scopes.tree import Kind


def begin(editor: Any) -> None:
    """Make the editor's connection the calling code's, and hold it (before it is entered)."""
    connection = editor.connection
    if (
        editor.collect_sql
        or not isinstance(connection, LoopWrapper)
        or connection.role != "lease"
        or connection.scope is not None
        or current_bridge() is None
    ):
        return
    chain = current_chain()
    if chain is not None:
        other = chain.wrappers.get(connection.alias)
        if other is None or (other is not connection and other.is_idle()):
            # Code outside a scope on purpose (`detached()`) left a second wrapper: Django enters
            # the transaction by alias, and the transaction must be on this one.
            chain.wrappers[connection.alias] = connection
    if not editor.atomic_migration:
        connection.ensure_connection()
        editor._nuages_hold = open_scope(connection, Kind.HOLD)


def end(editor: Any) -> None:
    """Let go of the connection of a schema editor that has been left."""
    scope = vars(editor).pop("_nuages_hold", None)
    if scope is not None and scope.wrapper.scope is scope:
        scope.end_hold()


def close_block(editor: Any) -> None:
    """Roll back where Django's `__exit__` raised before it came to the transaction.

    `__exit__` does so where a deferred statement fails (a foreign key, say): in stock Django the
    transaction then stays open until the process ends.
    """
    atomic = vars(editor).get("atomic")
    if editor.atomic_migration and atomic in editor.connection.atomic_blocks:
        atomic.__exit__(*sys.exc_info())
