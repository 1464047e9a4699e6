"""`django.test`: a loop for each class, and tests that leave nothing behind.

Installed where a process begins to run tests (`install_for_tests`), because importing
`django.test` would slow down every start.
"""

from __future__ import annotations

import functools
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from nuages.bridge import on_loop
from nuages.bridge.wrapping import is_async
from nuages.db.testing import run as testrun
from nuages.db.testing.on_commit import CaptureOnCommit
from nuages.seams.table import Seam

_MODULE = "django.test.testcases"


def _set_up_class(original: Any) -> Any:
    function = original.__func__

    @functools.wraps(function)
    def setUpClass(cls: Any) -> None:
        testrun.begin_class(cls)
        function(cls)

    return classmethod(setUpClass)


def _setup_and_call(original: Any) -> Any:
    @functools.wraps(original)
    def _setup_and_call(self: Any, result: Any, debug: bool = False) -> None:
        testrun.begin_test()
        original(self, result, debug)

    return _setup_and_call


def _post_teardown(original: Any) -> Any:
    @functools.wraps(original)
    def _post_teardown(self: Any) -> None:
        try:
            testrun.end_test(testrun.name_of(self))
        finally:
            original(self)

    return _post_teardown


def _capture_on_commit(original: Any) -> Any:
    function = original.__func__

    @functools.wraps(function)
    def captureOnCommitCallbacks(
        cls: Any, *, using: str = DEFAULT_DB_ALIAS, execute: bool = False
    ) -> CaptureOnCommit:
        return CaptureOnCommit(using, execute)

    return classmethod(captureOnCommitCallbacks)


def _assert_num_queries(original: Any) -> Any:
    @functools.wraps(original)
    def assertNumQueries(
        self: Any,
        num: int,
        func: Any = None,
        *args: Any,
        using: str = DEFAULT_DB_ALIAS,
        **kwargs: Any,
    ) -> Any:
        if func is None or not is_async(func):
            return original(self, num, func, *args, using=using, **kwargs)

        async def counted() -> None:
            async with original(self, num, using=using):
                await func(*args, **kwargs)

        return counted()

    return assertNumQueries


def _enter(original: Any) -> Any:
    async def __aenter__(self: Any) -> Any:
        return self.__enter__()

    return __aenter__


def _exit(original: Any) -> Any:
    async def __aexit__(self: Any, *exc_info: Any) -> Any:
        return self.__exit__(*exc_info)

    return __aexit__


def _closes_on_loop(original: Any) -> Any:
    def sync_to_async(function: Any, *, thread_sensitive: bool) -> Any:
        return on_loop(function)

    return sync_to_async


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        Seam(
            f"{_MODULE}:SimpleTestCase.setUpClass",
            "A class with async tests has one event loop, from its set-up to its tear-down.",
            _set_up_class,
            "(cls)",
        ),
        Seam(
            f"{_MODULE}:SimpleTestCase._setup_and_call",
            "A test's tasks are told from those of its class, which live on.",
            _setup_and_call,
            "(self, result, debug=False)",
        ),
        Seam(
            f"{_MODULE}:SimpleTestCase._post_teardown",
            "The test's tasks end with it, as they did with its loop.",
            _post_teardown,
            "(self)",
        ),
        Seam(
            f"{_MODULE}:TransactionTestCase._post_teardown",
            "What a test left open would be in the way of its rollback, or of the next test.",
            _post_teardown,
            "(self)",
        ),
        Seam(
            f"{_MODULE}:TestCase.captureOnCommitCallbacks",
            "By `async with` callbacks may query and may be coroutine functions.",
            _capture_on_commit,
            "(cls, *, using='default', execute=False)",
        ),
        Seam(
            f"{_MODULE}:TransactionTestCase.assertNumQueries",
            "A coroutine function is counted while it is awaited.",
            _assert_num_queries,
            "(self, num, func=None, *args, using='default', **kwargs)",
        ),
        Seam(
            "django.test.client:sync_to_async",
            "AsyncClient closes a response in a thread, and its receivers with it; the handler "
            "that it stands for closes it on the loop.",
            _closes_on_loop,
            callers=frozenset({"__call__"}),
        ),
        *(
            Seam(
                f"django.test.utils:CaptureQueriesContext.{name}",
                "An async test may count, and capture, by `async with`.",
                make,
                new=True,
            )
            for name, make in (("__aenter__", _enter), ("__aexit__", _exit))
        ),
    ]
