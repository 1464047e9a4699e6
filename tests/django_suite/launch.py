"""Runs Django's ``runtests.py`` in this process, on stock's way or on an event loop.

Owns the inside of a test process; started by ``processes`` with the path of a job file. Both sides
execute the same ``runtests.py`` as ``__main__``, with the same arguments, settings and recording.
The loop's side differs in three things: the engine in its settings, the seams, and that the whole
script (set-up of the databases, fixtures, tests, tear-down) is one bridged call on one loop.
Django wraps an ``async def`` test in ``async_to_sync``; inside the bridge that is an await on the
same loop.
"""

import asyncio
import faulthandler
import gc
import json
import os
import runpy
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import Any

RUNNER_MODULE = "nuages_suite_runner"
GREENLET_DEPTH = 30


def main(job_file: str) -> int:
    """Run the job and return the exit status of ``runtests.py``."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    # The stacks of a hang belong in the log before the outer process kills this one.
    if job["database"] == "mysql":
        _use_pymysql()
    faulthandler.dump_traceback_later(max(job["time_limit"] - 1, 0.1), exit=False)
    sys.path.remove(os.getcwd())
    os.chdir(job["suite"])
    sys.path[:0] = [job["suite"], job["folder"]]
    sys.argv = [
        "runtests.py",
        f"--settings={job['settings']}",
        "--parallel=1",
        "--noinput",
        *job["labels"],
    ]
    status = _run_on_loop(job) if job["side"] == "loop" else _run_stock(job)
    faulthandler.cancel_dump_traceback_later()
    return status


def _use_pymysql() -> None:
    """Give Django's own engine PyMySQL for mysqlclient, so that both sides have one driver."""
    from nuages.seams.mysqldb import stand_ins

    sys.modules.update(stand_ins())


def _run_stock(job: dict[str, Any]) -> int:
    from tests.django_suite.recorder import EventFile

    events = EventFile(job["events"])
    _offer_runner(events, before_tests=lambda: None, after_test=lambda: None)
    status = _runtests()
    events.write("finished", status=status)
    return status


def _run_on_loop(job: dict[str, Any]) -> int:
    from tests.django_suite.blocking import BlockingWatch
    from tests.django_suite.databases import REDIS_MODULES

    watch = BlockingWatch(Path(job["suite"]), lambda stack: events.write("blocked", stack=stack))
    watch.install(
        psycopg=job["database"] == "postgresql",
        redis=job["module"] in REDIS_MODULES,
        pymysql=job["database"] == "mysql",
    )

    from nuages import off_loop, on_loop
    from nuages.bridge import await_
    from nuages.db.backends.base.statistics import statistics
    from tests.django_suite.recorder import EventFile

    events = EventFile(job["events"])
    signal.signal(signal.SIGUSR1, _write_greenlets)

    def count() -> None:
        blocked = max(watch.blocked, statistics.blocked)
        events.write(
            "counters", bridged=statistics.bridged, worker=statistics.worker, blocked=blocked
        )

    def install_seams() -> None:
        from nuages import seams  # as an application's ready() would: Django is set up by now

        seams.install()
        if job["module"] in REDIS_MODULES:
            _use_our_redis_cache()
        if not job["plain"]:
            ours.update(asyncio.all_tasks())

    ours: set[asyncio.Task[Any]] = set()

    def after_test() -> None:
        # On stock each async test has a loop of its own, whose end is the end of its tasks.
        if not job["plain"] and asyncio.all_tasks() - ours:
            await_(_cancelled(asyncio.all_tasks() - ours))
        count()

    _offer_runner(events, before_tests=install_seams, after_test=after_test)

    async def on_one_loop() -> int:
        watch.start()
        try:
            return await on_loop(_runtests)()
        finally:
            watch.stop()

    if job["plain"]:
        status = _runtests()
    else:
        # A sync test may start a loop of its own, which asyncio refuses in a thread that runs one
        # already; the test's loop gets a thread.
        run, asyncio.run = asyncio.run, off_loop(asyncio.run)
        status = run(on_one_loop())
        count()
    events.write("finished", status=status)
    return status


def _use_our_redis_cache() -> None:
    """Put our cache where Django's tests look for Django's; they find theirs by its path."""
    from django.core.cache.backends import redis

    from nuages.cache.redis import RedisCache

    redis.RedisCache = RedisCache  # type: ignore[misc]


async def _cancelled(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _write_greenlets(number: int, frame: types.FrameType | None) -> None:
    """Write where each suspended greenlet waits: no thread's stack shows them."""
    from greenlet import greenlet  # type: ignore[import-untyped]

    for found in gc.get_objects():
        if issubclass(type(found), greenlet) and found.gr_frame is not None:
            print(f"\nsuspended {found!r}", file=sys.stderr)
            traceback.print_stack(found.gr_frame, limit=-GREENLET_DEPTH)
    sys.stderr.flush()


def _runtests() -> int:
    try:
        runpy.run_path("runtests.py", run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _offer_runner(events: Any, **hooks: Any) -> None:
    """Make the recording runner importable under the name that the settings give."""
    from tests.django_suite.recorder import runner_class

    module = types.ModuleType(RUNNER_MODULE)
    module.Runner = runner_class(events, **hooks)  # type: ignore[attr-defined]
    sys.modules[RUNNER_MODULE] = module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
