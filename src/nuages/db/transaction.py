"""The functions users call: transactions, holds, and code outside of them on purpose."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast, overload

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import Atomic, TransactionManagementError

from nuages.bridge import on_loop
from nuages.bridge.core import run_on_loop
from nuages.bridge.generators import Generators, generators_around
from nuages.bridge.wrapping import is_async
from nuages.db.atomic import entered_in, node_of
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.engines import OwnEngine
from nuages.db.pool.pool import logger
from nuages.db.scopes import tree
from nuages.db.scopes.chain import current_chain
from nuages.db.scopes.fair_lock import caller_label
from nuages.db.scopes.finalising import end_later, is_collecting
from nuages.db.scopes.holder import Holder, keep
from nuages.db.scopes.scope import Scope
from nuages.db.scopes.tree import Kind, Node, context_node
from nuages.exceptions import (
    EnteredElsewhere,
    NeedsAsyncWith,
    OpenBlock,
    ScopeDeadlock,
    ScopeEnded,
)

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

P = ParamSpec("P")
T = TypeVar("T")


def _running_task() -> asyncio.Task[Any] | None:
    loop = asyncio._get_running_loop()
    return None if loop is None else asyncio.current_task(loop)


def _opener() -> weakref.ref[Any] | None:
    """Return a reference to the running task.

    Weak: a block is referred to by frames that an error comes through, and a task that ends with
    an error refers to that.
    """
    task = _running_task()
    return None if task is None else weakref.ref(task)


def _is_closed_by_hand(
    exc_type: type[BaseException] | None, opener: weakref.ref[Any] | None
) -> bool:
    """Tell whether a block is left because its coroutine is closed: nothing can be awaited.

    The coroutine is not run by its task then, but by whoever closes it: the garbage collector,
    say. An async generator that another task closes could await; the two cannot be told apart.
    """
    if exc_type is not GeneratorExit:
        return False
    task = None if opener is None else opener()
    return task is None or task is not _running_task()


def _must_not_wait(node: Node) -> bool:
    """Tell whether a block that was closed by hand cannot be ended by a task of its pool's loop.

    Where a statement of its own is in flight (a thread's, say), the wait may be for ever. A
    statement of a dropped generator's consumer, or of the transaction around a savepoint, goes on.
    """
    scope = node.scope
    if scope.wrapper.scope is not scope:
        # The scope is over; the wrapper may serve somebody else.
        return False
    raw = scope.wrapper.connection
    if raw is None or not raw.is_alive():
        return True
    if raw.is_working() and node.kind is not Kind.SAVEPOINT and not node.was_dropped:
        return True
    return scope.pool is None or scope.pool.loop.is_closed()


async def entered(enter: Callable[[], T], undo: Callable[..., object]) -> T:
    """Call `enter` on the loop, for an `__aenter__`; on a failure after it, `undo(*exc_info)`.

    A cancellation that waited for an earlier COMMIT is raised when the call is over: the block is
    entered then, and Python calls no `__aexit__`.
    """
    results: list[T] = []
    try:
        await run_on_loop(lambda: results.append(enter()), (), {})
    except BaseException as error:
        if results:
            await run_on_loop(undo, (type(error), error, error.__traceback__), {})
        raise
    return results[0]


class AsyncOnly:
    """Mixin for async context managers: a sync `with` is told of `async with`."""

    _name: str
    _in_sync = ""
    """What sync code is to do instead."""

    # Hidden from type checkers, so that they find the mistake before it is made.
    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            raise NeedsAsyncWith(name=self._name, sync=self._in_sync)

        def __exit__(self, *exc_info: object) -> None:
            raise NeedsAsyncWith(name=self._name, sync=self._in_sync)


class _AsyncBlock:
    """The open blocks of one async context manager; `make()` gives each its `Atomic`."""

    def __init__(self, make: Callable[[], Atomic]) -> None:
        self._make = make
        self._entered: list[Atomic] = []
        self._opener: weakref.ref[Any] | None = None

    async def __aenter__(self) -> Any:
        self._opener = _opener()
        atomic = self._make()
        entered_in(atomic, generators_around())
        value: object = await entered(atomic.__enter__, atomic.__exit__)
        self._entered.append(atomic)
        return value

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        atomic = self._innermost()
        self._entered.remove(atomic)
        if _is_closed_by_hand(exc_type, self._opener) and (node := node_of(atomic)) is not None:
            if not is_collecting() and _must_not_wait(node):
                node.wrapper.abandon()
            atomic.__exit__(exc_type, exc_value, traceback)
            return
        await on_loop(atomic.__exit__)(exc_type, exc_value, traceback)

    def _innermost(self) -> Atomic:
        """The block to leave: where the instance is shared, the current one of this context."""
        if len(self._entered) > 1:
            node = context_node(self._entered[-1].using or DEFAULT_DB_ALIAS)
            while node is not None:
                if node.atomic in self._entered:
                    return cast(Atomic, node.atomic)
                node = node.previous
        return self._entered[-1]


class _AsyncAtomic(_AsyncBlock, AsyncOnly):
    """One use of `aatomic`: an async context manager and a decorator."""

    _name = "aatomic"
    _in_sync = "In sync code, on the loop too: `with transaction.atomic():`"

    def __init__(self, using: str | None, savepoint: bool, durable: bool) -> None:
        super().__init__(functools.partial(Atomic, using, savepoint, durable))

    async def __aenter__(self) -> None:
        await super().__aenter__()

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]]
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        refuse_generator(function, "aatomic")
        if not is_async(function):
            raise TypeError(
                "aatomic() decorates coroutine functions; use django.db.transaction.atomic for "
                "a sync one, on the loop too."
            )
        return in_block(function, self._make)


def in_block(function: Callable[P, Any], make: Callable[[], Atomic]) -> Callable[P, Any]:
    """Return the async `function`, every call of which is in a block of its own."""

    async def inner(*args: P.args, **kwargs: P.kwargs) -> Any:
        async with _AsyncBlock(make):
            return await function(*args, **kwargs)

    return functools.update_wrapper(inner, function)


def refuse_generator(function: Any, name: str) -> None:
    """Raise TypeError where `function` makes async generators, which `name` cannot decorate."""
    if inspect.isasyncgenfunction(function) or getattr(function, "_nuages_stepped", False):
        raise TypeError(
            f"{name}() cannot decorate an async generator function, whose body runs when somebody "
            f"iterates. Write `async with {name}():` into it, around what belongs together."
        )


# Django's own `atomic`, on coroutines


def decorate(
    atomic: Atomic, function: Any, sync_decorate: Callable[[Atomic, Any], Any]
) -> Callable[..., Any]:
    """Return `function` decorated with Django's `atomic`: an async function as by `aatomic`.

    A sync function may return the coroutine of an async one (`View.dispatch`, say): the coroutine
    runs in a block of its own.
    """
    refuse_generator(function, "transaction.atomic")
    make = functools.partial(_copy, atomic)
    if is_async(function):
        return in_block(function, make)
    decorated = sync_decorate(atomic, function)

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        result = decorated(*args, **kwargs)
        if type(result) is types.CoroutineType and _is_ours(atomic):
            return _awaited_in_block(result, make)
        return result

    return inner


async def enter_async(atomic: Atomic) -> Any:
    """Enter `async with transaction.atomic():`; the instance may be entered many times over."""
    block = _block_of(atomic)
    return await block.__aenter__()


async def exit_async(atomic: Atomic, *exc_info: Any) -> None:
    """Leave the block that `enter_async` entered."""
    await _block_of(atomic).__aexit__(*exc_info)


def _block_of(atomic: Atomic) -> _AsyncBlock:
    block: _AsyncBlock | None = atomic.__dict__.get(_BLOCK)
    if block is None:
        block = atomic.__dict__[_BLOCK] = _AsyncBlock(functools.partial(_copy, atomic))
    return block


_BLOCK = "_nuages_async"
"""The attribute of an `Atomic` that `async with` has used."""


def _copy(atomic: Atomic) -> Atomic:
    """Return an `Atomic` of the same class and arguments that nobody has entered."""
    new = copy.copy(atomic._recreate_cm())  # type: ignore[attr-defined]
    for name in [name for name in new.__dict__ if name.startswith("_nuages_")]:
        del new.__dict__[name]
    return cast(Atomic, new)


def _is_ours(atomic: Atomic) -> bool:
    return isinstance(connections[atomic.using or DEFAULT_DB_ALIAS], OwnEngine)


async def _awaited_in_block(coroutine: Coroutine[Any, Any, T], make: Callable[[], Atomic]) -> T:
    async with _AsyncBlock(make):
        return await coroutine


@overload
def aatomic(
    using: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def aatomic(
    using: str | None = None, savepoint: bool = True, durable: bool = False
) -> _AsyncAtomic: ...
def aatomic(using: Any = None, savepoint: bool = True, durable: bool = False) -> Any:
    """Guarantee that a block of async code is atomic: `django.db.transaction.atomic`, awaited.

    An async context manager (`async with aatomic():`) and a decorator of coroutine functions,
    with or without arguments. Tasks started inside join the transaction and take turns on its
    connection; await them before the block ends. A cancellation rolls back, unless COMMIT has
    been sent: then its outcome is awaited first. An async generator that yields inside the block
    must be advanced by one task, and its consumer is in the transaction meanwhile (Python's
    context variables work so); any task may close it.

    Raises what Django's `atomic` raises, and `OpenBlock`, `ScopeEnded` and `ScopeDeadlock`.
    """
    if callable(using):
        return _AsyncAtomic(None, savepoint, durable)(using)
    return _AsyncAtomic(using, savepoint, durable)


async def aon_commit(
    func: Callable[[], object], using: str | None = None, robust: bool = False
) -> None:
    """Register `func` to run when the current transaction commits.

    `func` takes no arguments; it may be a coroutine function, or return a coroutine, which is
    awaited. Outside a transaction it runs at once. With `robust`, its errors are logged and do not
    stop other hooks. A cancellation of the committing task waits for the hooks, for
    NUAGES["HOOKS_TIMEOUT"] seconds. A database error in a hook comes out as `HookFailed`.
    """
    if not callable(func):
        raise TypeError("aon_commit()'s callback must be a callable.")
    await on_loop(lambda: connections[using or DEFAULT_DB_ALIAS].on_commit(func, robust))()


class _Hold(AsyncOnly):
    """An async context manager that keeps one connection for its block."""

    _name = "hold_connection"
    _in_sync = "Sync code that a coroutine awaits inside the block is in the hold, too"

    def __init__(self, using: str | None) -> None:
        self._alias = using or DEFAULT_DB_ALIAS
        self._holder: Holder | None = None

    async def __aenter__(self) -> BaseDatabaseWrapper:
        self._opener = _opener()
        generators = generators_around()
        return await entered(
            lambda: self._enter(generators), lambda *_: self._exit(failed=True, elsewhere=False)
        )

    def _enter(self, generators: Generators) -> LoopWrapper:
        wrapper = connections[self._alias]
        if not isinstance(wrapper, LoopWrapper):
            raise TransactionManagementError(
                f"hold_connection() needs an engine of nuages.db.backends for {self._alias!r}."
            )
        if wrapper.scope is None:
            wrapper.ensure_connection()
        self._holder = keep(wrapper, Kind.HOLD, generators)
        return wrapper

    async def __aexit__(self, *exc_info: Any) -> None:
        holder = self._holder
        if holder is None:
            return
        by_hand = _is_closed_by_hand(exc_info[0], self._opener)
        is_dropped = by_hand or holder.dropped or exc_info[0] is GeneratorExit
        if holder.has_others and is_dropped:
            # The hold around it, or the consumer of the generator, goes on with the connection.
            self._holder = None
            holder.leave()
            return
        scope = holder.scope
        if by_hand:
            self._holder = None
            if scope.pool is None or scope.pool.loop.is_closed():
                _drop_hold(scope)
            else:
                end_later(scope.pool, functools.partial(_end_dropped, scope))
            return
        elsewhere = not tree.is_in_context(scope.root)
        await on_loop(self._exit)(failed=exc_info[0] is not None, elsewhere=elsewhere)

    def _exit(self, *, failed: bool, elsewhere: bool) -> None:
        holder, self._holder = self._holder, None
        if holder is None:
            return
        if holder.is_within_hold:
            holder.leave()
            return
        scope = holder.scope
        left_open = None
        if scope.wrapper.scope is scope:
            try:
                left_open = scope.end_hold(goes_on=holder.is_within_others)
            finally:
                holder.leave()
        if failed:
            return
        if left_open is not None:
            raise OpenBlock(child=left_open.label)
        if elsewhere:
            raise EnteredElsewhere(opener=scope.root.label, caller=caller_label())


def _end_dropped(scope: Scope) -> None:
    """End a hold whose coroutine was closed, when nobody uses its connection."""
    root = scope.root
    while scope.wrapper.scope is scope and not scope.blocks:
        call = tree.Node(Kind.CALL, scope, root, current_chain())
        try:
            tree.acquire_turn(root, call)
        except (ScopeDeadlock, ScopeEnded):
            break
        try:
            # Code that found the hold before it was dropped goes first.
            if not root.turns.is_waited_for():
                scope.end_hold()
        finally:
            call.end()
    _drop_hold(scope)


def _drop_hold(scope: Scope) -> None:
    """End a hold without waiting for anything."""
    if scope.wrapper.scope is scope:
        if not scope.blocks:
            scope.wrapper.abandon()
        scope.let_go()


def hold_connection(using: str | None = None) -> _Hold:
    """Keep one connection for a block: `async with` gives the connection.

    For session state (SET, temporary tables, advisory locks, LISTEN): what runs inside uses
    this connection, tasks started inside too, one after another. At the end the session is
    reset if need be and the connection goes back to the pool. Inside a transaction it is the
    transaction's connection.
    """
    return _Hold(using)


class _PerRequest:
    """An async context manager: one connection of each alias from first query to end."""

    async def __aenter__(self) -> None:
        self._before = tree.request_nodes.get()
        self._held = tree.RequestNodes()
        tree.request_nodes.set(self._held)

    async def __aexit__(self, *exc_info: object) -> None:
        tree.request_nodes.set(self._before)
        self._held.ended = True
        async with AsyncExitStack() as every:  # if one fails, the other databases' too
            for node in self._held.values():
                every.push_async_callback(on_loop(self._end), node.scope)

    @staticmethod
    def _end(scope: Scope) -> None:
        left_open = scope.end_hold() if scope.wrapper.scope is scope else None
        if left_open is not None:
            logger.warning(
                "A request ended while a transaction block of %s was open on its connection; "
                "it was rolled back.",
                left_open.label,
            )


def request_connections() -> _PerRequest:
    """Run a block with NUAGES["CONNECTION_PER"] = "request": the handler's part."""
    return _PerRequest()


class _Detached(AsyncOnly):
    """An async context manager whose block is outside every scope."""

    _name = "detached"
    _in_sync = "Sync code that a coroutine awaits inside the block is outside, too"

    def __init__(self, using: str | None) -> None:
        self._using = using

    async def __aenter__(self) -> None:
        aliases = [self._using] if self._using else list(connections)
        self._made = tree.detach(aliases, generators_around())
        self._around = [one.before for one in self._made.values()]

    async def __aexit__(self, *exc_info: object) -> None:
        tree.attach(self._made)


def detached(using: str | None = None) -> _Detached:
    """Run a block outside the current transaction or hold, on purpose.

    `async with detached(): await Log.objects.acreate(...)` is committed whatever becomes of the
    transaction around it, and tasks started inside may outlive that transaction. The block takes a
    second connection, beyond the pool's `max_size` where need be. Without `using` it is outside
    the scopes of every database.
    """
    return _Detached(using)
