"""Additions to QuerySet, and its async iteration."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

from django.db import connections
from django.db.models import query
from django.db.models.query import RawQuerySet, aprefetch_related_objects

from nuages.bridge import current_bridge, on_loop
from nuages.bridge.generators import generators_around
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.orm.to_async import orm_to_async
from nuages.db.scopes import tree
from nuages.db.scopes.chain import Chain, current_chain
from nuages.db.scopes.holder import Holder, keep, keep_shared
from nuages.db.scopes.tree import Kind, Node
from nuages.exceptions import ScopeEnded

T = TypeVar("T")

RAW_HAS_AITER = hasattr(RawQuerySet, "__aiter__")


async def alist(self: Any) -> list[Any]:
    """Return the queryset's results as a list, fetched in one go: `list(queryset)`, awaited."""
    if self._result_cache is None or (self._prefetch_related_lookups and not self._prefetch_done):
        await orm_to_async(self._fetch_all)()
    return list(self._result_cache)


def aselect_related(self: Any, *fields: Any) -> Any:
    """Return `select_related(*fields)`. A plain call: nothing is queried, nothing awaited."""
    return self.select_related(*fields)


def aprefetch_related(self: Any, *lookups: Any) -> Any:
    """Return `prefetch_related(*lookups)`. A plain call: nothing is queried, nothing awaited."""
    return self.prefetch_related(*lookups)


async def manager_alist(self: Any) -> list[Any]:
    """Return all objects as a list."""
    result: list[Any] = await self.get_queryset().alist()
    return result


def manager_aselect_related(self: Any, *fields: Any) -> Any:
    """Return `select_related(*fields)`. A plain call: nothing is queried, nothing awaited."""
    return self.get_queryset().select_related(*fields)


def manager_aprefetch_related(self: Any, *lookups: Any) -> Any:
    """Return `prefetch_related(*lookups)`. A plain call: nothing is queried, nothing awaited."""
    return self.get_queryset().prefetch_related(*lookups)


async def alist_raw(self: Any) -> list[Any]:
    """Return the raw query's results as a list."""
    return list(await orm_to_async(self.__iter__)())


async def iterate_raw(self: Any) -> AsyncGenerator[Any, None]:
    """Iterate over a raw query's results."""
    for item in await orm_to_async(self.__iter__)():
        yield item


async def aiterator(self: Any, chunk_size: int = 2000) -> AsyncGenerator[Any, None]:
    """Iterate over the results without keeping them, `chunk_size` rows at a time.

    Django's `aiterator()`. Where the database has server-side cursors one connection is held
    until the iteration ends, is closed or is abandoned; queries of the same task in the loop's
    body, prefetches among them, use it too.
    """
    if chunk_size <= 0:
        raise ValueError("Chunk size must be strictly positive.")
    chunked = not connections[self.db].settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")
    iterable = self._iterable_class(self, chunked_fetch=chunked, chunk_size=chunk_size)
    # No generator within this one: a collection that finds both would have both closed at once.
    is_djangos = _is_djangos(iterable)
    chunks = _Chunks(iterable) if is_djangos else _ChunksOf(aiter(iterable), chunk_size)
    try:
        while chunk := await chunks.next():
            if self._prefetch_related_lookups:
                await aprefetch_related_objects(chunk, *self._prefetch_related_lookups)
            for item in chunk:
                yield item
    finally:
        await chunks.aclose()


def _is_djangos(iterable: Any) -> bool:
    """Tell whether async iteration of `iterable` is Django's (now ours), not a subclass's own."""
    base: Any = query.BaseIterable
    return isinstance(iterable, base) and all(
        getattr(type(iterable), name) is getattr(base, name)
        for name in ("__aiter__", "_async_generator")
    )


async def iterate(self: Any) -> AsyncGenerator[Any, None]:
    """Iterate asynchronously over one of Django's iterables, a chunk in each bridged call."""
    chunks = _Chunks(self)
    try:
        while chunk := await chunks.next():
            for item in chunk:
                yield item
    finally:
        await chunks.aclose()


class _ChunksOf:
    """The items of an async iterator that is not Django's, in chunks."""

    def __init__(self, items: Any, size: int) -> None:
        self._items = items
        self._size = size

    async def next(self) -> list[Any]:
        """Return the next chunk; an empty list at the end."""
        found: list[Any] = []
        async for item in self._items:
            found.append(item)
            if len(found) >= self._size:
                break
        return found

    async def aclose(self) -> None:
        """Close the iterator."""
        if (close := getattr(self._items, "aclose", None)) is not None:
            await close()


class _Chunks:
    """The rows of one of Django's iterables, each chunk in a bridged call of its own."""

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable
        # Not iterated yet: some iterables, values_list()'s among them, query in `__iter__`.
        self._rows: Iterator[Any] | None = None
        self._pin = _Pin(iterable.queryset.db) if iterable.chunked_fetch else None
        self._ended = False

    async def next(self) -> list[Any]:
        """Return the next chunk; an empty list at the end."""
        if self._ended:
            return []
        chunk: list[Any] = await native_rows(self._iterable, self._next_slice)
        self._ended = len(chunk) < self._iterable.chunk_size
        return chunk

    async def aclose(self) -> None:
        """Close the cursor and let the connection go."""
        try:
            if self._pin is not None and self._pin.has_connection:
                # Whatever scope the caller is in: it may be a task that closes dropped generators.
                await on_loop(self._close)()
            else:
                await native_rows(self._iterable, self._close)
        except ScopeEnded:
            # The iteration was left early in a block that is over by now, and so is the cursor.
            self._rows = None

    def _next_slice(self) -> list[Any]:
        if self._pin is None:
            return self._next_rows()
        found: list[Any] = self._pin.run(self._next_rows)
        return found

    def _next_rows(self) -> list[Any]:
        if self._rows is None:
            self._rows = iter(self._iterable)
        return list(itertools.islice(self._rows, self._iterable.chunk_size))

    def _close(self) -> None:
        if self._pin is None:
            self._close_rows()
        else:
            self._pin.close(self._close_rows)

    def _close_rows(self) -> None:
        last, self._rows = self._rows, None
        if (close := getattr(last, "close", None)) is not None:
            close()
        # Rows that are no generator (a `map()`, say) close their cursor as they are freed: here.


async def native_rows(iterable: Any, function: Callable[[], T]) -> T:
    """Run `function` where the iterable's database is used: on the loop, or in a thread."""
    wrapper = connections[iterable.queryset.db]
    if isinstance(wrapper, LoopWrapper):
        return await on_loop(function)()
    from asgiref.sync import sync_to_async

    return await sync_to_async(function)()


class _Pin:
    """One lease kept for an open cursor; visible to the task that iterates, and no other."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._chain: Chain | None = None
        self._holder: Holder | None = None
        self._generators = generators_around()

    @property
    def has_connection(self) -> bool:
        """Tell whether a connection is kept for the cursor, and not for a block around it."""
        return self._holder is not None

    def run(self, function: Callable[[], T]) -> T:
        """Call `function` with the pinned lease (in a bridge)."""
        if current_bridge() is None:
            return function()
        if self._holder is None and self._chain is None:
            return self._begin(function)
        if self._holder is None or not self._holder.is_alone:
            return function()  # the scope or lease that was there already keeps the cursor
        root = self._holder.scope.root
        before = tree.context_node(self._alias)
        root.adopt()  # the task that closes an abandoned iteration is another one
        if not _reaches(before, root):
            tree.set_node(self._alias, root)
        try:
            return function()
        finally:
            if tree.context_node(self._alias) is root and not _reaches(before, root):
                tree.set_node(self._alias, before)

    def _begin(self, function: Callable[[], T]) -> T:
        chain = self._chain = current_chain()
        assert chain is not None
        wrapper = connections[self._alias]
        if isinstance(wrapper, LoopWrapper) and wrapper.scope is not None:
            # First: other holders of the scope may be dropped at any time, which would end it.
            self._holder = keep_shared(wrapper, Kind.PIN, self._generators)
        result = function()
        if self._holder is None:
            wrapper = connections[self._alias]
            if isinstance(wrapper, LoopWrapper) and not (
                wrapper.connection is None or wrapper.is_idle()
            ):
                self._holder = keep(wrapper, Kind.PIN, self._generators)
        return result

    def close(self, function: Callable[[], object]) -> None:
        """End the iteration by `function` and let the lease go (in a bridge).

        Where a block that is open in the iteration goes on with the connection, that block ends
        the scope.
        """
        holder = self._holder
        if holder is not None and holder.is_alone and holder.scope.blocks:
            self._holder = None
            holder.scope.let_go()
            return
        try:
            if holder is not None and holder.is_alone:
                holder.scope.wait_for_calls()
            self.run(function)
        finally:
            self._holder = None
            if holder is not None:
                holder.leave()


def _reaches(start: Node | None, node: Node) -> bool:
    while start is not None:
        if start is node:
            return True
        start = start.previous
    return False
