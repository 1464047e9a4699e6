"""The place where sync code awaits, the only module that knows about greenlets.

Sync code called through `on_loop` runs in a greenlet on the event loop's own thread, in the
task's own context. Where it would block it calls `await_`, which switches to the greenlet's
parent, the *driver*: a coroutine of the calling task that awaits there and switches back with
the result. The technique is that of SQLAlchemy's asyncio extension (`greenlet_spawn`); what is
added here is the *portal*, which drives the steps of a coroutine inside a greenlet, so that
async code may contain implicit I/O.

Rules that keep it sound, each with a test in tests/unit/test_bridge.py or test_portal.py:

* The active bridge is found by task. Another library's greenlet may lie between, and a task
  started eagerly (Python 3.12) inside a greenlet is not in that greenlet's bridge.
* The greenlet's parent is set before every resume: a task may be resumed from elsewhere.
* A bridge that is suspended is not active: coroutines its driver awaits start bridges of their
  own, which share the outer one's `locals` because one task is one chain of calls.
* `GeneratorExit` (the driver was closed, maybe by the garbage collector in another task) unwinds
  the greenlet, in its own thread; nothing can be awaited then.
* A greenlet is used again after its call has returned: a new one maps and unmaps memory, which
  costs more than all the rest. An idle greenlet keeps nothing of its last call alive.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import types
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, cast

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

from nuages.bridge.awaitables import discard, steps_of
from nuages.bridge.cancellation import Cancellable
from nuages.bridge.handled import add_context, call_handling
from nuages.bridge.tasks import current_task
from nuages.exceptions import BridgeClosed, NotInBridge

P = ParamSpec("P")
T = TypeVar("T")

_bridges: dict[asyncio.Task[Any], Bridge] = {}
"""The innermost bridge of every task that has one."""

_unwinding: dict[int, Bridge] = {}
"""By thread: the bridge whose greenlet unwinds, whichever task runs there."""

suspend_hooks: list[Callable[[Bridge], None]] = []
"""Called before a bridge waits for anything but a driver's own I/O (leases go back there)."""

end_hooks: list[Callable[[Bridge], None]] = []
"""Called when a bridge has ended, in the task's context and outside its greenlet."""


class _Idle(threading.local):
    """The greenlets of a thread that wait for their next call; at most `_IDLE_LIMIT`."""

    def __init__(self) -> None:
        self.greenlets: list[greenlet] = []


_idle = _Idle()
_IDLE_LIMIT = 100


class Bridge(Cancellable):
    """One sync call that runs on the event loop.

    `locals` is a place for what lives as long as the task's outermost bridge; bridges that the
    same task starts further down share it.
    """

    __slots__ = ("call", "greenlet", "locals", "loop", "outer", "result", "running")

    def __init__(self, task: asyncio.Task[Any], loop: Any, call: Any) -> None:
        super().__init__(task)
        self.loop: asyncio.AbstractEventLoop = loop
        self.call: tuple[Callable[..., Any], Any, Any] | None = call
        """What to call, with its arguments; None when it has returned `result`."""
        self.outer = outer = _bridges.get(task)
        self.locals: dict[str, Any] = {} if outer is None else outer.locals
        self.running = False
        self.greenlet: Any = None
        self.result: Any = None

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Suspend the running sync code until `awaitable` is done and return its result.

        For drivers: unlike `await_` it gives no lease back.
        """
        if self.closing or self.deferred_cancel is not None or self.grace is not None:
            awaitable = self._admitted(awaitable)
        handled = sys.exception()
        try:
            return cast(T, self.greenlet.parent.switch((getcurrent(), awaitable)))
        except BaseException as error:
            if handled is not None:
                add_context(error, handled)
            raise

    def _admitted(self, awaitable: Awaitable[T]) -> Awaitable[T]:
        """Return what to await in place of `awaitable`, or raise what forbids awaiting."""
        try:
            if self.closing:
                raise BridgeClosed()
            self.deliver()
        except BaseException:
            discard(awaitable)
            raise
        if self.grace is None or self.grace.is_over:
            return awaitable
        return self.grace.outlast(awaitable)

    def suspend(self) -> None:
        """Call the hooks: the code is about to wait for something other than a driver's I/O."""
        for hook in suspend_hooks:
            hook(self)

    def resume(self, switch: Callable[..., Any], *args: Any) -> Any:
        """Switch into the greenlet; return what it asks the driver to await, if anything."""
        if self.greenlet.parent is not getcurrent():
            self.greenlet.parent = getcurrent()
        self.running = True
        try:
            return switch(*args)
        finally:
            self.running = False
            # A traceback that somebody keeps must not keep the greenlet, and an error that is
            # thrown refers to this frame, which would refer to the error.
            del switch, args

    def unwind(self, target: greenlet, closed: GeneratorExit) -> Any:
        """Raise `closed` in the greenlet; code that runs there now finds this bridge closing."""
        self.closing = True
        thread = threading.get_ident()
        before = _unwinding.get(thread)
        _unwinding[thread] = self
        try:
            return self.resume(target.throw, closed)
        finally:
            _unwinding.pop(thread) if before is None else _unwinding.update({thread: before})

    def is_elsewhere(self) -> bool:
        """Tell whether the greenlet belongs to a thread other than the calling one."""
        try:
            self.greenlet.parent = getcurrent()
        except ValueError:
            return True
        return False

    def end(self) -> None:
        """Note that the call has ended."""
        if self.outer is None:
            del _bridges[self.task]
        else:
            _bridges[self.task] = self.outer
        for hook in end_hooks:
            hook(self)
        # Break the cycle between the driver's frame, the bridge and the greenlet, and the one
        # between a task, the error that it ends with and the frames that the error came through.
        self.greenlet = None
        del self.task

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
    if _unwinding and (unwinding := _unwinding.get(threading.get_ident())) is not None:
        return unwinding
    loop = _get_running_loop()
    if loop is None or (task := current_task(loop)) is None:
        return None
    bridge = _bridges.get(task)
    return bridge if bridge is not None and bridge.running else None


def current_context() -> contextvars.Context:
    """Return the calling code's context itself, of which `copy_context()` gives a copy."""
    context: contextvars.Context = getcurrent().gr_context
    return context


def bridge_of(task: asyncio.Task[Any]) -> Bridge | None:
    """Return the innermost bridge of `task`, running or suspended, or None."""
    return _bridges.get(task)


def await_(awaitable: Awaitable[T]) -> T:
    """Await from sync code that runs on the loop through `on_loop`.

    Takes any awaitable and returns its result; its exceptions, cancellation included, are
    raised here. Outside a bridge a coroutine is closed (it will never run) and `NotInBridge` is
    raised; while the bridge is being closed, `BridgeClosed` is.
    """
    bridge = current_bridge()
    if bridge is None:
        discard(awaitable)
        raise NotInBridge()
    if not bridge.closing:
        bridge.suspend()
    return bridge.wait(awaitable)


def _work() -> None:
    """Make one call after another, in a greenlet. An exception ends the greenlet."""
    while True:
        # No variable for the greenlet: one that its own frame refers to is never freed.
        bridge: Bridge = getcurrent().parent.switch()
        function, args, kwargs = bridge.call  # type: ignore[misc]
        bridge.result = function(*args, **kwargs)
        bridge.call = None
        del bridge, function, args, kwargs


def _unwind_on_loop(bridge: Bridge, target: Any) -> None:
    """Have the loop unwind the greenlet `target` and end `bridge` (from another thread).

    The garbage collector runs in any thread, but only a greenlet's own thread can switch to it. A
    failure meanwhile is reported to the loop's exception handler. A loop that is closed unwinds
    nothing any more.
    """

    def unwind() -> None:
        try:
            with suppress(GeneratorExit):  # raised for the greenlet, and now at the end of its way
                bridge.unwind(target, GeneratorExit())
        finally:
            bridge.end()

    if bridge.loop.is_closed():
        bridge.end()
    else:
        bridge.loop.call_soon_threadsafe(unwind)


@types.coroutine
def _drive(function: Callable[..., T], args: Any, kwargs: Any) -> Generator[Any, Any, T]:
    """Run `function(*args, **kwargs)` in a greenlet of the task; await what it asks for."""
    loop = _get_running_loop()
    task = current_task(loop) if loop is not None else None
    if task is None:
        raise NotInBridge("What on_loop() returns is awaited in a running asyncio task.")
    handled = sys.exception()
    if handled is not None:
        function, args = call_handling, (handled, function, args)
    bridge = Bridge(task, loop, (function, args, kwargs))
    idle = _idle.greenlets
    child = bridge.greenlet = idle.pop() if idle else greenlet(_work)
    if not child:
        child.switch()  # up to its wait for a call
    child.gr_context = getcurrent().gr_context
    _bridges[task] = bridge
    elsewhere = False
    try:
        request = bridge.resume(child.switch, bridge)
        while bridge.call is not None:
            target, awaitable = request
            try:
                value = yield from steps_of(awaitable)
            except GeneratorExit as closed:
                if elsewhere := bridge.is_elsewhere():
                    _unwind_on_loop(bridge, target)
                    raise
                request = bridge.unwind(target, closed)
            except BaseException as error:
                request = bridge.resume(target.throw, type(error), error, error.__traceback__)
            else:
                request = bridge.resume(target.switch, value)
            del target, awaitable
        child.gr_context = None
        if len(idle) < _IDLE_LIMIT:
            idle.append(child)
        bridge.deliver()
        return cast(T, bridge.result)
    except Exception as error:
        bridge.deliver(error)
        raise
    finally:
        if not elsewhere:
            bridge.end()
        child = target = request = None  # as in resume()
        del task  # as in end()


async def run_on_loop(function: Callable[..., T], args: Any, kwargs: Any) -> T:
    """Call a sync `function` on the loop: `await on_loop(function)(...)`, without the wrapper."""
    bridge = current_bridge()
    if bridge is None:
        return await _drive(function, args, kwargs)
    # Code in a bridge awaits this call: no new greenlet.
    try:
        result = function(*args, **kwargs)
    except Exception as error:
        bridge.deliver(error)
        raise
    bridge.deliver()
    return result
