"""Writes what happens to each test, as it happens, for the process that waits outside.

Owns the event file: one JSON object a line, each written by one unbuffered call so that a crash or
a kill loses nothing that had happened. Folding is ``outcomes``' work; here every report of
unittest is one line. Only the process that opened the file writes (some tests fork).
"""

import json
import os
import unittest
from collections.abc import Callable, Iterator
from typing import Any

from django.test.runner import DiscoverRunner

MOST_DETAIL = 12_000


class EventFile:
    """Append-only JSON lines, written by the process that opened them."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._process = os.getpid()

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        if os.getpid() == self._process:
            line = json.dumps({"event": event, **values}) + "\n"
            os.write(self._descriptor, line.encode("utf-8"))


def runner_class(
    events: EventFile,
    *,
    before_tests: Callable[[], None],
    after_test: Callable[[], None],
) -> type[DiscoverRunner]:
    """Return Django's test runner, writing to ``events``.

    ``before_tests`` runs once, when Django and its applications are set up and no test module is
    imported yet; ``after_test`` after each test.
    """

    class RecordingResult(unittest.TextTestResult):
        # unittest's own formatting: the traceback without unittest's frames.
        _exc_info_to_string: Callable[[Any, Any], str]

        def startTest(self, test: unittest.TestCase) -> None:
            events.write("start", test=test.id())
            super().startTest(test)

        def stopTest(self, test: unittest.TestCase) -> None:
            super().stopTest(test)
            events.write("stop", test=test.id())
            after_test()

        def addSuccess(self, test: unittest.TestCase) -> None:
            super().addSuccess(test)
            _record(test, "passed")

        def addError(self, test: unittest.TestCase, err: Any) -> None:
            super().addError(test, err)
            _record(test, "error", self._exc_info_to_string(err, test))

        def addFailure(self, test: unittest.TestCase, err: Any) -> None:
            super().addFailure(test, err)
            _record(test, "failed", self._exc_info_to_string(err, test))

        def addSkip(self, test: unittest.TestCase, reason: str) -> None:
            super().addSkip(test, reason)
            _record(test, "skipped", reason)

        def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
            super().addExpectedFailure(test, err)
            _record(test, "expectedFailure")

        def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
            super().addUnexpectedSuccess(test)
            _record(test, "unexpectedSuccess")

        def addSubTest(self, test: unittest.TestCase, subtest: Any, err: Any) -> None:
            super().addSubTest(test, subtest, err)
            if err is not None:
                failed = issubclass(err[0], test.failureException)
                text = f"{subtest}\n{self._exc_info_to_string(err, subtest)}"
                _record(test, "failed" if failed else "error", text)

    def _record(test: Any, kind: str, detail: str = "") -> None:
        owner = getattr(test, "test_case", test)  # a subtest is folded into its test
        if len(detail) > MOST_DETAIL:
            detail = f"{detail[: MOST_DETAIL // 2]}\n[...]\n{detail[-MOST_DETAIL // 2 :]}"
        events.write("outcome", test=owner.id(), kind=kind, detail=detail)

    class RecordingRunner(DiscoverRunner):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            before_tests()

        def get_resultclass(self) -> type[unittest.TextTestResult]:
            return RecordingResult

        def build_suite(self, *arguments: Any, **options: Any) -> unittest.TestSuite:
            suite = super().build_suite(*arguments, **options)
            events.write("planned", tests=[test.id() for test in _tests_of(suite)])
            return suite

        def setup_databases(self, **options: Any) -> Any:
            events.write("databases", aliases=sorted(options.get("aliases") or ()))
            return super().setup_databases(**options)

    return RecordingRunner


def _tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _tests_of(item)
        else:
            yield item
