"""The surroundings of a test of Django's classes: its class's loop, and the end of what it left.

`seams/test.py` has Django call these.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from typing import Any

from asgiref.sync import iscoroutinefunction

from nuages.db.testing import transactions as testing
from nuages.db.testing.class_loop import ClassLoop
from nuages.exceptions import TestLeftOpen

logger = logging.getLogger("nuages.test")

_loops: list[ClassLoop] = []
"""The loop of the class that runs now; a list, because a test may run another class's tests."""


def is_async_class(cls: type[Any]) -> bool:
    """Tell whether a test class has async tests, or says that it wants a loop."""
    if getattr(cls, "class_loop", False):
        return True
    return any(
        name.startswith("test") and iscoroutinefunction(inspect.getattr_static(cls, name))
        for name in dir(cls)
    )


def begin_class(cls: Any) -> None:
    """Give a class with async tests its loop; a class clean-up ends it."""
    if asyncio._get_running_loop() is not None or not is_async_class(cls):
        return
    loop = ClassLoop(f"{cls.__module__}.{cls.__qualname__}", getattr(cls, "loop_factory", None))
    loop.start()
    _loops.append(loop)
    cls.addClassCleanup(_end_class)


def _end_class() -> None:
    _loops.pop().stop()


def name_of(case: Any) -> str:
    """Return the name of the test that runs; pytest's functions have one case for all."""
    if type(case).__name__ == "PytestDjangoTestCase":
        return os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    return str(case.id())


def begin_test() -> None:
    """Tell the tasks of the class from those of the test that begins."""
    if _loops:
        _loops[-1].adopt()
        _loops[-1].keep_tasks()


def end_test(test: str) -> None:
    """End what a test left: tasks, then blocks. Raises `TestLeftOpen` for what it left open.

    Tasks that are not at work in the test's transaction are cancelled as at any loop's end.
    """
    if asyncio._get_running_loop() is not None:
        return
    found: list[str] = []
    if _loops:
        found, tasks = _loops[-1].end_tasks(testing.at_work)
        for task in tasks:
            logger.info("%s left task %s running; it was cancelled", test, task)
    found += testing.end_leftovers(test)
    if found:
        raise TestLeftOpen(test=test, what="; ".join(dict.fromkeys(found)))
