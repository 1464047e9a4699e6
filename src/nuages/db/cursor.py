"""`acursor`: raw SQL in async code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections

from nuages.bridge import on_loop
from nuages.bridge.generators import Generators, generators_around
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.scopes.holder import Holder, keep, keep_shared
from nuages.db.scopes.tree import Kind
from nuages.db.transaction import AsyncOnly, entered
from nuages.exceptions import OpenBlock

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.utils import CursorWrapper
    from psycopg.sql import Composable

P = ParamSpec("P")
T = TypeVar("T")

Row = tuple[Any, ...]
"""Any: a column holds what the statement selects."""
Parameters = Sequence[object] | Mapping[str, object] | None

_NOT_ENTERED = "Use acursor() as `async with acursor() as cursor:`."


class AsyncCursor(AsyncOnly):
    """Django's cursor with awaited methods, on one connection for the length of the block.

    Use it as `async with acursor() as cursor:`. The connection is held while the block lasts,
    so what the cursor does and what the ORM does inside it share a session. Attributes
    (`description`, `rowcount`, ...) are those of Django's cursor; type checkers know those of
    PEP 249. For a driver's own attributes there is `run(lambda cursor: cursor.statusmessage)`.
    """

    _name = "acursor"
    _in_sync = "In sync code: `with connection.cursor() as cursor:`"

    if TYPE_CHECKING:
        db: BaseDatabaseWrapper
        description: Sequence[Sequence[object]] | None
        rowcount: int
        lastrowid: int | None
        arraysize: int

    def __init__(self, using: str) -> None:
        self._alias = using
        self._cursor: Any = None
        self._holder: Holder | None = None

    async def __aenter__(self) -> AsyncCursor:
        generators = generators_around()
        await entered(lambda: self._open(generators), lambda *_: self._close(failed=True))
        return self

    def _open(self, generators: Generators) -> None:
        wrapper = connections[self._alias]
        if isinstance(wrapper, LoopWrapper) and wrapper.scope is not None:
            # First: other holders of the scope may be dropped at any time, which would end it.
            self._holder = keep_shared(wrapper, Kind.PIN, generators)
        try:
            self._cursor = wrapper.cursor()
        except BaseException:
            if self._holder is not None:
                self._holder.leave()
            raise
        if isinstance(wrapper, LoopWrapper) and self._holder is None:
            self._holder = keep(wrapper, Kind.PIN, generators)

    async def __aexit__(self, *exc_info: object) -> None:
        await on_loop(self._close)(failed=exc_info[0] is not None)

    def _close(self, *, failed: bool) -> None:
        holder, self._holder = self._holder, None
        if holder is None or not holder.is_alone:
            try:
                self._cursor.close()
            finally:
                if holder is not None:
                    holder.leave()
            return
        scope = holder.scope
        if not scope.blocks:
            scope.root.adopt()
            try:
                scope.wait_for_calls()
                self._cursor.close()
            finally:
                holder.leave()
        elif scope.root.abandoned:
            # A block of the consumer's goes on with the connection, and ends the scope.
            scope.let_go()
        elif (left_open := scope.end_hold()) is not None and not failed:
            raise OpenBlock(child=left_open.label)

    async def _call(self, method: str, *args: object) -> Any:
        if self._cursor is None:
            raise TypeError(_NOT_ENTERED)
        function: Callable[..., object] = getattr(self._cursor, method)
        return await on_loop(function)(*args)

    async def execute(self, sql: str | Composable, params: Parameters = None) -> AsyncCursor:
        """Execute one statement, `%s` placeholders filled from `params`; return the cursor."""
        await self._call("execute", sql, params)
        return self

    async def executemany(
        self, sql: str | Composable, param_list: Sequence[Parameters]
    ) -> AsyncCursor:
        """Execute one statement for each entry of `param_list`; return the cursor."""
        await self._call("executemany", sql, param_list)
        return self

    async def callproc(self, procname: str, params: Sequence[object] | None = None) -> object:
        """Call a stored procedure, where the database has stored procedures."""
        return await self._call("callproc", procname, params)

    async def fetchone(self) -> Row | None:
        """Return the next row, or None."""
        row: Row | None = await self._call("fetchone")
        return row

    async def fetchmany(self, size: int | None = None) -> list[Row]:
        """Return the next `size` rows."""
        return list(await self._call("fetchmany", *([] if size is None else [size])))

    async def fetchall(self) -> list[Row]:
        """Return all remaining rows."""
        return list(await self._call("fetchall"))

    async def __aiter__(self) -> AsyncIterator[Row]:
        while rows := await self.fetchmany(100):
            for row in rows:
                yield row

    async def run(
        self,
        function: Callable[Concatenate[CursorWrapper, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return `function(cursor, *args, **kwargs)`, run in a bridge: for COPY and so on."""
        if self._cursor is None:
            raise TypeError(_NOT_ENTERED)
        return await on_loop(function)(self._cursor, *args, **kwargs)

    if not TYPE_CHECKING:  # it would let every misspelt name pass

        def __getattr__(self, name: str) -> object:
            if self._cursor is None:
                raise AttributeError(f"AsyncCursor has no {name!r} yet. {_NOT_ENTERED}")
            return getattr(self._cursor, name)


def acursor(using: str | None = None) -> AsyncCursor:
    """Return an async cursor for raw SQL; `async with` opens it: see `AsyncCursor`.

    Inside a transaction it uses the transaction's connection.
    """
    return AsyncCursor(using or DEFAULT_DB_ALIAS)


__all__ = ["AsyncCursor", "acursor"]
