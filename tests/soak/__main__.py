"""`python -m tests.soak`: start the servers, run the load, judge.

    python -m tests.soak [--database NAME] [--minutes N] [--requests N]
        [--seed N] [--faults TIMES] [--write-docs]

Without options it goes on for 200,000 requests or 10 minutes, whichever is more; with --minutes
alone for that time. --database is postgresql, mysql or sqlite; --faults makes so many times as
many of them. It prints its time limit and fails past it, and at anything that is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import django

from nuages.test import FaultProxy
from tests import services
from tests.soak import databases, page, verdict
from tests.soak.client import Client
from tests.soak.databases import Database
from tests.soak.load import Load, measure

ROOT = Path(__file__).parents[2]
REQUESTS, MINUTES = 200_000, 10.0
WARM_UP = 1500, 15.0
"""Requests and seconds of the same load, at least, before the baseline is taken."""
QUIET = 60.0
"""Seconds in which all must be back at the baseline: idle connections are closed after 3."""
LIMIT_RATE = 30.0
"""Requests in a second, at least: slower is past the time limit."""


def main() -> int:
    options = _options()
    limit = 2 * QUIET + 60 + max(WARM_UP[1], WARM_UP[0] / LIMIT_RATE)
    limit += max(options.minutes * 60, options.requests / LIMIT_RATE)
    print(f"Soak: {options.requests:,} requests and {options.minutes:g} minutes at least; seed "
          f"{options.seed}; time limit {limit / 60:.1f} minutes", flush=True)  # fmt: skip
    with services.valkey_server() as valkey, databases.fresh(options.database) as database:
        try:
            return asyncio.run(_soak(options, database, valkey, limit))
        except TimeoutError:
            print(f"FAILED: not done within {limit / 60:.1f} minutes")
            return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--database", choices=databases.VENDORS, default="postgresql")
    parser.add_argument("--faults", type=float, default=1.0, metavar="TIMES")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    if options.requests is None:
        options.requests = REQUESTS if options.minutes is None else 0
    if options.minutes is None:
        options.minutes = MINUTES
    return options


async def _soak(options: argparse.Namespace, database: Database, valkey: str, limit: float) -> int:
    async with asyncio.timeout(limit):
        with tempfile.TemporaryFile("w+") as log:
            try:
                async with _site(options, database, valkey, log) as (port, faults):
                    load, gauges = await _run(options, port, faults)
            except BaseException:
                print(
                    "The server's log ends with:",
                    *(line[:2000] for line in _lines(log)[-10:]),
                    sep="\n  ",
                )
                raise
            lines = _lines(log)
    wrong_lines, counted = verdict.judge_log(lines)
    fitted = verdict.growth(load.samples)
    wrong = [
        *load.wrong,
        *verdict.judge_left(gauges[0], gauges[1]),
        *verdict.judge_data(database.tags(), load.ledger),
        *wrong_lines,
        *verdict.judge_memory(fitted),
    ]
    hit = sum(load.faulty.values())
    if hit > faults.most_hit:
        wrong.append(f"{hit} requests were hit by {faults.most_hit} lost connections")
    if counted[verdict.CUT_OFF] > faults.cut:
        wrong.append(f"{counted[verdict.CUT_OFF]} cancellations failed, {faults.cut} cuts")
    report = page.Report(load, faults, fitted, gauges[0], gauges[1], counted)
    print(report.text())
    if options.write_docs and not wrong:
        page.write(report)
    for each in wrong[:40]:
        print(f"WRONG: {each}")
    print(f"FAILED: {len(wrong)} things are wrong" if wrong else "All is well")
    return 1 if wrong else 0


def _lines(log: Any) -> list[str]:
    log.seek(0)
    return list(log.read().splitlines())


async def _run(options: argparse.Namespace, port: int, faults: Any) -> tuple[Load, list[Any]]:
    """Warm up, take the baseline, run the load, wait until it is quiet."""
    client = Client(port)
    load = Load(port, options.seed)
    await load.run(*WARM_UP)
    if load.wrong:
        raise AssertionError("\n".join(load.wrong))
    before = await _quiet(client, None)
    warm = load.requests
    load.requests = 0
    load.counts.clear()
    meanwhile = [
        asyncio.create_task(load.sample(long=options.minutes > 5)),
        asyncio.create_task(faults.run()),
    ]
    progress = asyncio.create_task(_progress(load))
    try:
        await load.run(options.requests, options.minutes * 60)
    finally:
        for task in (*meanwhile, progress):
            task.cancel()
        results = await asyncio.gather(*meanwhile, progress, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
    after = await _quiet(client, before)
    print(f"({warm:,} requests to warm up)")
    return load, [before, after]


async def _progress(load: Load) -> None:
    begin = time.monotonic()
    while True:
        await asyncio.sleep(30)
        minutes = (time.monotonic() - begin) / 60
        size = load.samples[-1]["rss"] / 1e6
        print(f"  {minutes:4.1f} min  {load.requests:>8,} requests  {size:6.1f} MB", flush=True)


async def _quiet(client: Client, before: Any) -> Any:
    """Wait until the server has nothing to do and is as `before`; return its gauges.

    Without `before`, until nothing changes between two looks. After QUIET it is as it is.
    """
    deadline = time.monotonic() + QUIET
    last: Any = None
    while True:
        found = await measure(client)
        client.leave()
        if before is not None and verdict.same(before, found):
            return found
        watched = {name: found[name] for name in verdict.LEFT}
        watched["pools"] = {alias: stats["size"] for alias, stats in found["pools"].items()}
        if (before is None and watched == last) or time.monotonic() > deadline:
            return found
        last = watched
        # Longer than idle connections live.
        await asyncio.sleep(4)


@asynccontextmanager
async def _site(
    options: argparse.Namespace, database: Database, valkey: str, log: Any
) -> AsyncIterator[tuple[int, Any]]:
    """Prepare the database, serve the site; gives its port and what makes faults."""
    entry = database.entry
    proxy_port = services.free_port()
    given = {"database": entry, "proxy": proxy_port, "cache": valkey}
    os.environ["SOAK_SITE"] = json.dumps(given)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.soak.settings"
    django.setup()
    from tests.soak import prepare
    from tests.soak.faults import Faults

    await asyncio.to_thread(prepare.fill)
    # SQLite has no address; its connections do not come here.
    server = entry.get("HOST", "127.0.0.1"), int(entry.get("PORT", proxy_port))
    async with FaultProxy(*server, listen=proxy_port) as proxy:
        with _served(log) as port:
            yield port, Faults(database, proxy, random.Random("faults"), options.faults)


@contextmanager
def _served(log: Any) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "default",
        # Without it every thread has an arena of its own, and what is freed in one is of no use
        # to the others.
        "MALLOC_ARENA_MAX": "2",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.serve", str(listener.fileno())],
        env=environment,
        pass_fds=[listener.fileno()],
        stdout=log,
        stderr=log,
    )
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield port
        process.send_signal(signal.SIGTERM)
        if (code := process.wait(30)) not in (0, -signal.SIGTERM):
            raise AssertionError(f"the server ended with {code}")
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
