"""Where sync code awaits: the one place that knows about greenlets.

Sync code called through `on_loop` runs in a greenlet on the event loop's own thread, in the
task's own context. Where it would block it calls `await_`, which switches to the greenlet's
parent, the *driver*: a coroutine of the calling task that awaits there and switches back with
the result. The technique is that of SQLAlchemy's asyncio extension (`greenlet_spawn`); what is
added here is the *portal*, which drives the steps of a coroutine inside a greenlet, so that
async code may contain implicit I/O.

Rules that keep it sound, each with a test in tests/unit/test_bridge.py:

* The active bridge is found by task. Another library's greenlet may lie between, and a task
  started eagerly (Python 3.12) inside a greenlet is not in that greenlet's bridge.
* The greenlet's parent is set before every resume: a task may be resumed from elsewhere.
* A bridge that is suspended is not active: coroutines its driver awaits start bridges of their
  own, which share the outer one's `locals` since one task is one chain of calls.
* `GeneratorExit` (the driver was closed) unwinds the greenlet; nothing can be awaited then.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from greenlet import getcurrent, greenlet

from nuages.exceptions import BridgeClosed, NotInBridge

P = ParamSpec("P")
T = TypeVar("T")

_bridges: dict[asyncio.Task[Any], Bridge] = {}
"""The innermost bridge of every task that has one."""

suspend_hooks: list[Callable[[Bridge], None]] = []
"""Called before a bridge waits for anything but a driver's own I/O (leases go back there)."""

end_hooks: list[Callable[[Bridge], None]] = []
"""Called when a bridge has ended, in the task's context and outside its greenlet."""


class Bridge:
    """One sync call that runs on the event loop.

    `locals` is a place for what lives as long as the task's outermost bridge; bridges that the
    same task starts further down share it.
    """

    __slots__ = (
        "closing",
        "deferred_cancel",
        "greenlet",
        "locals",
        "loop",
        "outer",
        "running",
        "shields",
        "task",
    )

    def __init__(self, task: asyncio.Task[Any], outer: Bridge | None) -> None:
        self.task = task
        self.loop = task.get_loop()
        self.outer = outer
        self.locals: dict[str, Any] = {} if outer is None else outer.locals
        self.running = False
        self.closing = False
        self.shields = 0
        self.deferred_cancel: asyncio.CancelledError | None = None
        self.greenlet: greenlet | None = None

    @property
    def root(self) -> Bridge:
        """The outermost bridge of this task."""
        bridge = self
        while bridge.outer is not None:
            bridge = bridge.outer
        return bridge

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Suspend the running sync code until `awaitable` is done and return its result.

        For drivers: unlike `await_` it gives no lease back.
        """
        if self.closing:
            _discard(awaitable)
            raise BridgeClosed()
        if self.deferred_cancel is not None and not self.shields:
            _discard(awaitable)
            cancelled, self.deferred_cancel = self.deferred_cancel, None
            raise cancelled
        assert self.greenlet is not None
        return cast(T, self.greenlet.parent.switch((getcurrent(), awaitable)))

    def _resume(self, switch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Switch into the greenlet; return what it asks to await, or its result."""
        assert self.greenlet is not None
        here = getcurrent()
        if self.greenlet.parent is not here:
            self.greenlet.parent = here
        self.running = True
        try:
            return switch(*args, **kwargs)
        finally:
            self.running = False

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Inside, a cancellation waits (in `deferred_cancel`) until what must end has ended.

        The driver's wait catches it; it is raised at the next wait outside, or at the end.
        """
        self.shields += 1
        try:
            yield
        finally:
            self.shields -= 1

    def frames(self) -> list[types.FrameType]:
        """The suspended greenlet's frames, innermost first (`Task.get_stack` cannot see them)."""
        frame = self.greenlet.gr_frame if self.greenlet is not None else None
        found = []
        while frame is not None:
            found.append(frame)
            frame = frame.f_back
        return found


def current_bridge() -> Bridge | None:
    """Return the bridge in whose greenlet the calling code runs, or None."""
    loop = asyncio._get_running_loop()
    if loop is None:
        return None
    task = asyncio.current_task(loop)
    if task is None:
        return None
    bridge = _bridges.get(task)
    return bridge if bridge is not None and bridge.running else None


def bridge_of(task: asyncio.Task[Any]) -> Bridge | None:
    """Return the innermost bridge of `task`, running or suspended, or None."""
    return _bridges.get(task)


def await_(awaitable: Awaitable[T]) -> T:
    """Await from sync code that runs on the loop through `on_loop`.

    Takes any awaitable and returns its result; its exceptions, cancellation included, are
    raised here. Outside a bridge a coroutine is closed (it will never run) and `NotInBridge`
    raised; while the bridge is being closed, `BridgeClosed`.
    """
    bridge = current_bridge()
    if bridge is None:
        _discard(awaitable)
        raise NotInBridge()
    if not bridge.closing:
        for hook in suspend_hooks:
            hook(bridge)
    return bridge.wait(awaitable)


def _discard(awaitable: Awaitable[Any]) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()
    elif isinstance(awaitable, asyncio.Future):
        awaitable.cancel()


@types.coroutine
def _drive(run: Callable[..., T], args: Any, kwargs: Any) -> Generator[Any, Any, T]:
    """Run `run(*args, **kwargs)` in a greenlet of the current task; await what it asks for."""
    task = asyncio.current_task()
    if task is None:
        raise NotInBridge("on_loop() works in a running asyncio task; await it from one.")
    outer = _bridges.get(task)
    bridge = Bridge(task, outer)
    target = child = bridge.greenlet = greenlet(run)
    child.gr_context = getcurrent().gr_context
    _bridges[task] = bridge
    try:
        answer = bridge._resume(child.switch, *args, **kwargs)
        while not child.dead:
            target, awaitable = answer
            try:
                value = yield from _iterate(awaitable)
            except GeneratorExit as closed:
                bridge.closing = True
                answer = bridge._resume(target.throw, closed)
            except BaseException as error:
                answer = bridge._resume(target.throw, error)
            else:
                answer = bridge._resume(target.switch, value)
    except Exception as error:
        if bridge.deferred_cancel is not None:
            raise bridge.deferred_cancel from error
        raise
    finally:
        if outer is None:
            del _bridges[task]
        else:
            _bridges[task] = outer
        for hook in end_hooks:
            hook(bridge)
        # Break the cycle between this frame, the bridge and the greenlet.
        bridge.greenlet = child = target = None  # type: ignore[assignment]
    if bridge.deferred_cancel is not None and not bridge.closing:
        raise bridge.deferred_cancel
    return cast(T, answer)


def _iterate(awaitable: Any) -> Any:
    try:
        return awaitable.__await__()
    except AttributeError:
        return _await(awaitable).__await__()


async def _await(awaitable: Any) -> Any:
    return await awaitable


class _Step:
    """What a portal's coroutine yielded, to be yielded again by the driver."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.value)


def _run_coroutine(coroutine: Any) -> Any:
    """Drive `coroutine` inside the current greenlet (the portal)."""
    bridge = current_bridge()
    assert bridge is not None
    send: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            step = send(value)
        except StopIteration as stop:
            return stop.value
        if not bridge.closing:
            for hook in suspend_hooks:
                hook(bridge)
        try:
            value = bridge.wait(_Step(step))
        except BaseException as error:
            value, send = error, coroutine.throw
        else:
            send = coroutine.send


class _PortalGenerator(AsyncGenerator[Any, Any]):
    """An async generator whose every step runs in a greenlet.

    It takes the place of the generator it drives in the loop's asyncgen hooks, so that a loop
    that shuts down closes it in a bridge, and so does the garbage collector: dropped
    unfinished, it is closed by a task of its loop.
    """

    def __init__(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generator = generator
        self._loop: asyncio.AbstractEventLoop | None = None

    def _step(self, method: Callable[..., Any], *args: Any) -> Any:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            firstiter, finalizer = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(None, None)
            try:
                step = method(*args)
            finally:
                sys.set_asyncgen_hooks(firstiter, finalizer)
            if firstiter is not None:
                firstiter(cast("AsyncGeneratorType[Any, Any]", self))
        else:
            step = method(*args)
        if current_bridge() is not None:
            return step
        return _await(_drive(_run_coroutine, (_Awaiting(step),), {}))

    def __anext__(self) -> Any:
        return self._step(self._generator.__anext__)

    def asend(self, value: Any) -> Any:
        return self._step(self._generator.asend, value)

    def athrow(self, *args: Any) -> Any:
        return self._step(self._generator.athrow, *args)

    def aclose(self) -> Any:
        return self._step(self._generator.aclose)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def __del__(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed() and self._generator.ag_frame is not None:
            spawn(loop, _adopt(self._generator, loop).aclose)


def _adopt(generator: AsyncGenerator[Any, Any], loop: Any) -> _PortalGenerator:
    portal = _PortalGenerator(generator)
    portal._loop = loop
    return portal


class _Awaiting:
    """Gives the steps of an awaitable that has no `send` of its own a coroutine's face."""

    __slots__ = ("send", "throw")

    def __init__(self, awaitable: Any) -> None:
        iterator = awaitable.__await__()
        self.send = iterator.send
        self.throw = iterator.throw


_spawned: set[asyncio.Task[Any]] = set()


def spawn(
    loop: asyncio.AbstractEventLoop, function: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    """Run `function()` in a strongly referenced task of `loop`, from any thread.

    Its failure is reported to the loop's exception handler. A closed loop is left alone.
    """

    def start() -> None:
        task = loop.create_task(function())
        _spawned.add(task)
        task.add_done_callback(done)

    def done(task: asyncio.Task[Any]) -> None:
        _spawned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler(
                {"message": "Nuages background work failed", "exception": error, "task": task}
            )

    if asyncio._get_running_loop() is loop:
        start()
    elif not loop.is_closed():
        loop.call_soon_threadsafe(start)


@overload
def on_loop(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]: ...  # fmt: skip  # noqa: E501
@overload
def on_loop(function: Callable[P, AsyncGenerator[T, Any]]) -> Callable[P, AsyncGenerator[T, Any]]: ...  # fmt: skip  # noqa: E501
@overload
def on_loop(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]: ...
def on_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a callable run on the event loop, with its I/O awaited.

    A sync function, method, class-based view (`on_loop(View.as_view())`) or other callable
    becomes a coroutine function that runs in a greenlet on the loop: the counterpart of
    `asgiref.sync.sync_to_async`, which runs it in a thread. A coroutine function or an async
    generator function stays what it is, and code in it may do implicit I/O (`post.author.name`).

    What runs on the loop must not block it: wrap a blocking call in `off_loop`.
    """
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(on_loop(function.__func__))  # type: ignore[return-value]
    if not callable(function):
        raise TypeError(f"on_loop() takes a callable, not {type(function).__name__}.")
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            return _PortalGenerator(function(*args, **kwargs))

        return generator

    if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):

        async def portal(*args: Any, **kwargs: Any) -> Any:
            coroutine = function(*args, **kwargs)
            if current_bridge() is not None:
                return await coroutine
            return await _drive(_run_coroutine, (coroutine,), {})

        return functools.update_wrapper(portal, function)

    async def bridged(*args: Any, **kwargs: Any) -> Any:
        if current_bridge() is not None:
            return function(*args, **kwargs)
        return await _drive(function, args, kwargs)

    # A partial or a callable object has no __name__; update_wrapper skips what is missing.
    return functools.update_wrapper(bridged, function)


def off_loop(function: Callable[P, T]) -> Callable[P, T]:
    """Make a blocking callable safe to call from code that may run on the loop.

    Inside a bridge `function` runs in a thread, is awaited there and shares the caller's
    context and transaction; elsewhere it is just called. The result stays a sync callable.
    """
    if iscoroutinefunction(function):
        raise TypeError("off_loop() takes a sync callable; await the coroutine function instead.")

    @functools.wraps(function)
    def off(*args: P.args, **kwargs: P.kwargs) -> T:
        if current_bridge() is None:
            return function(*args, **kwargs)
        return await_(sync_to_async(function, thread_sensitive=False)(*args, **kwargs))

    return off
