"""Test cases whose set-up and tear-down are async, too.

Django's own TestCase runs async tests (`seams/test.py`); these cases add what the standard
library's `IsolatedAsyncioTestCase` has: `asyncSetUp` and its kin, on the class's loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import django.test
from asgiref.sync import async_to_sync, iscoroutinefunction

P = ParamSpec("P")
T = TypeVar("T")

if TYPE_CHECKING:

    class _Base(django.test.TransactionTestCase):
        """Django's case with unittest's steps, which the stubs leave out."""

        def _callSetUp(self) -> None: ...
        def _callTearDown(self) -> None: ...

else:
    _Base = object


def _run(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an async function from the test's own thread, on the class's loop."""

    async def call() -> T:
        return await function(*args, **kwargs)

    return async_to_sync(call)()


class _AsyncSteps(_Base):
    """Mixin: the async steps of a test, and of its class."""

    if TYPE_CHECKING:
        # Any: a coroutine if it is `async def`, which a subclass's `super()` awaits; else None.
        @classmethod
        def setUpTestData(cls) -> Any: ...

    class_loop = True
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    """A function that makes the class's loop, say `uvloop.new_event_loop`; None for asyncio's."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        data = cls.__dict__.get("setUpTestData")
        if isinstance(data, classmethod) and iscoroutinefunction(data.__func__):
            # mypy: a class's own method is replaced by what Django calls.
            cls.setUpTestData = classmethod(_awaited(data.__func__))  # type: ignore[assignment, method-assign]

    async def asyncSetUp(self) -> None:
        """Prepare a test; after `setUp()`."""

    async def asyncTearDown(self) -> None:
        """Clean up after a test whose set-up succeeded; before `tearDown()`."""

    def addAsyncCleanup(
        self, function: Callable[P, Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Have `function(*args, **kwargs)` awaited after the test, last added first.

        Sync clean-ups (`addCleanup`) are in the same queue.
        """
        self.addCleanup(functools.partial(_run, function, *args, **kwargs))

    async def enterAsyncContext(self, cm: AbstractAsyncContextManager[T]) -> T:
        """Enter an async context manager, which a clean-up exits; return what it gives."""
        kind = type(cm)
        try:
            enter, leave = kind.__aenter__, kind.__aexit__
        except AttributeError:
            raise TypeError(
                f"{kind.__module__}.{kind.__qualname__} is no async context manager."
            ) from None
        result = await enter(cm)
        self.addAsyncCleanup(leave, cm, None, None, None)
        return result

    def _callSetUp(self) -> None:
        super()._callSetUp()
        _run(self.asyncSetUp)

    def _callTearDown(self) -> None:
        try:
            _run(self.asyncTearDown)
        finally:
            super()._callTearDown()


def _awaited(function: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def setUpTestData(cls: Any) -> Any:
        # On a loop it was called by a subclass's own: `await super().setUpTestData()`.
        return function(cls) if asyncio._get_running_loop() else _run(function, cls)

    return setUpTestData


class AsyncTestCase(_AsyncSteps, django.test.TestCase):
    """Django's TestCase with async steps.

    `asyncSetUp`, `asyncTearDown`, `addAsyncCleanup` and `enterAsyncContext` mean what they mean
    on `unittest.IsolatedAsyncioTestCase`; sync and async tests may
    stand side by side, and `setUpTestData` may be an `async def` classmethod. All of them run on
    one loop, that of the class, and in the test's transaction.
    """


class AsyncTransactionTestCase(_AsyncSteps, django.test.TransactionTestCase):
    """Django's TransactionTestCase with the async steps of `AsyncTestCase`.

    Async code uses the pool, as in production, and what it commits is flushed.
    """
