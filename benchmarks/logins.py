"""What 50 logins at once do to an event loop: ``python -m benchmarks.logins``.

A password is hashed with Django's default hasher and iterations, which takes a core for a good
part of a second. A heartbeat on the server's loop notes how late it wakes while 50 logins are at
work, and, as the measure of that, while the same view logs users in without a password. Exit
status 2: a server did not start or answered wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from benchmarks.database import DatabaseError, filled_database
from benchmarks.servers import ROOT, Server, SubjectError
from benchmarks.subjects import SUBJECTS, Subject
from tests.services import ServiceError

LOGINS = 50
NAME, PASSWORD = "ada", "correct horse battery staple"
PLAIN_SECONDS = 5.0
"""How long logins without a password go on, in bursts: one is over before much is noted."""

_MAKE_USER = f"""
import django
django.setup()
from django.contrib.auth.models import User
User.objects.create_user({NAME!r}, password={PASSWORD!r})
"""


@dataclass(frozen=True)
class Burst:
    """What was measured while one kind of login went on."""

    seconds: float
    logins: int
    delays: list[float]
    """Seconds, of every beat."""

    @property
    def p99(self) -> float:
        return percentile(self.delays, 99)

    def row(self) -> str:
        median, p99, worst = statistics.median(self.delays), self.p99, max(self.delays)
        times = "".join(f"{1000 * value:>10.1f}" for value in (median, p99, worst))
        return f"{self.logins / self.seconds:>10.1f}{len(self.delays):>8}{times}"


def percentile(values: Sequence[float], percent: int) -> float:
    """The least value that `percent` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def _get(port: int, path: str) -> object:
    """GET `path` on a connection of its own; return the JSON."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise SubjectError(f"GET {path} was answered: {head[:200]!r}")
    return json.loads(body)


async def _burst(port: int, path: str, count: int) -> None:
    answers = await asyncio.gather(*(_get(port, path) for _ in range(count)))
    if wrong := [answer for answer in answers if answer != {"user": NAME}]:
        raise SubjectError(f"GET {path} was answered: {wrong[0]!r}")


async def measure(port: int, path: str, logins: int, at_least: float) -> Burst:
    """Send bursts of logins for `at_least` seconds, and one at any rate."""
    await _get(port, "/heart/start")
    began, done = time.perf_counter(), 0
    while not done or time.perf_counter() - began < at_least:
        await _burst(port, path, logins)
        done += logins
    seconds = time.perf_counter() - began
    delays = (await _get(port, "/heart/stop"))["delays"]
    return Burst(seconds, done, delays)


async def visit(server: Server, logins: int) -> tuple[Burst, Burst]:
    """Measure logins without hashing, then with it; both paths are warm."""
    plain = f"/login?name={NAME}"
    hashing = f"{plain}&password={PASSWORD.replace(' ', '+')}"
    for path in (plain, hashing):
        await _burst(server.port, path, 2)
    without = await measure(server.port, plain, logins, PLAIN_SECONDS)
    return without, await measure(server.port, hashing, logins, 0)


def prepare(url: str) -> None:
    """Make Django's tables and the user."""
    given = next(s.variables for s in SUBJECTS if s.name == "stock")
    environment = {**os.environ, **given, "BENCH_DATABASE_URL": url}
    for command in (["-m", "django", "migrate", "--verbosity", "0"], ["-c", _MAKE_USER]):
        subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, check=True)


def report(subject: Subject, without: Burst, hashing: Burst) -> str:
    ratio = f"p99 with hashing is {hashing.p99 / max(without.p99, 1e-6):.1f} times that without"
    title = f"{subject.name}: {subject.title}"
    return f"{title}\n  no hashing  {without.row()}\n  hashing     {hashing.row()}\n  {ratio}\n"


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.logins", description=__doc__)
    made.add_argument("--logins", type=int, default=LOGINS, help=f"at once ({LOGINS})")
    made.add_argument(
        "--subjects", nargs="+", default=["nuages", "stock"], choices=["nuages", "stock"]
    )
    arguments = made.parse_args()
    subjects = [subject for subject in SUBJECTS if subject.name in arguments.subjects]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{arguments.logins} logins at once, {cores} cores; delays of the loop in ms\n")
    print(f"{'':14}{'logins/s':>10}{'beats':>8}{'median':>10}{'p99':>10}{'max':>10}", flush=True)
    try:
        with filled_database() as url:
            prepare(url)
            for subject in sorted(subjects, key=lambda subject: subject.name):
                with Server(subject, url, frozenset()) as server:
                    try:
                        measured = asyncio.run(visit(server, arguments.logins))
                    except OSError as error:
                        raise SubjectError(f"{error!r}; its log:\n{server.logged()}") from error
                print(report(subject, *measured), flush=True)
    except (DatabaseError, ServiceError, SubjectError, psycopg.Error) as error:
        print(f"benchmarks.logins: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
