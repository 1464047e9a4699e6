"""`django.test`: a loop for each class, and tests that leave nothing behind.

Installed where a process begins to run tests (`install_for_tests`), since importing `django.test`
costs a start that much.
"""

from __future__ import annotations

import functools
from typing import Any

from nuages.db import testrun
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
            testrun.end_test(self.id())
        finally:
            original(self)

    return _post_teardown


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
    ]
