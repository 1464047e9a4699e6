"""The command: ``python -m benchmarks [--quick]``.

Owns the order of a run: database, servers, checks, interleaved rounds, report. Exit status 0: all
was measured, whatever the ratios; 1 with --strict: a target was missed; 2: something is not there
or answered wrongly, and nothing is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import report, rounds, wrk
from benchmarks.database import DatabaseError, filled_database
from benchmarks.placement import Placement, on_cores, place, usable_cores
from benchmarks.servers import ROOT, Server, SubjectError
from benchmarks.subjects import SUBJECTS, TARGETS, Subject
from benchmarks.usage import Meter, Usage
from benchmarks.works import CLIENTS, POOL_SIZE, WORKS, Work
from tests.services import ServiceError

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    *("Django", "psycopg", "psycopg_pool", "greenlet", "uvicorn", "uvloop", "httptools"),
    *("gunicorn", "fastapi", "SQLAlchemy", "asyncpg"),
)
QUIET = 0.5
"""A load average up to which a machine is quiet enough."""


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("--quick", action="store_true", help="two short rounds, below six minutes")
    made.add_argument("--rounds", type=positive, metavar="N", help="another number of rounds")
    names = [subject.name for subject in SUBJECTS]
    made.add_argument(
        "--subjects",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help=f"only these of: {' '.join(names)}",
    )
    works = [work.name for work in WORKS]
    made.add_argument(
        "--works",
        nargs="+",
        choices=works,
        default=works,
        metavar="WORK",
        help=f"only these of: {' '.join(works)}",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="where the JSON goes")
    made.add_argument("--strict", action="store_true", help="status 1 if a target is missed")
    made.add_argument("--no-placing", action="store_true", help="do not place processes on cores")
    made.add_argument(
        "--serve",
        choices=names,
        metavar="NAME",
        help="serve this subject until Ctrl-C, to look at it with other tools",
    )
    return made


class Run:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace, placement: Placement) -> None:
        self.plan = rounds.QUICK if options.quick else rounds.FULL
        if options.rounds is not None:
            self.plan = rounds.Plan(options.rounds, self.plan.warm_up, self.plan.measured)
        self.subjects = [each for each in SUBJECTS if each.name in options.subjects]
        self.works = [each for each in WORKS if each.name in options.works]
        self.placement = placement
        self.wrk = wrk.find()
        self.rates: dict[str, dict[str, list[float]]] = {
            work.name: {subject.name: [] for subject in self.subjects} for work in self.works
        }
        self.usages: dict[str, dict[str, list[Usage]]] = {
            work.name: {subject.name: [] for subject in self.subjects} for work in self.works
        }
        self.about = about(self.plan, self.placement)

    def measure(self) -> None:
        with on_cores(self.placement.others), filled_database() as database_url:
            for number in range(self.plan.rounds):
                self._round(number, database_url)

    def _round(self, number: int, database_url: str) -> None:
        # A server lives for one round: that much chance of its process is in the spread.
        with ExitStack() as stack:
            servers = {
                subject.name: stack.enter_context(
                    Server(subject, database_url, self.placement.server)
                )
                for subject in self.subjects
            }
            for server in servers.values():
                for work in self.works:
                    server.check(work)
            for done, (work, subject) in enumerate(
                rounds.visits(number, self.subjects, self.works), start=1
            ):
                rate = self._visit(servers[subject.name], work)
                visit = f"round {number + 1}/{self.plan.rounds} visit {done:>2}"
                print(f"{visit}  {work.name:<9} {subject.name:<12} {rate:>8.0f} req/s", flush=True)

    def _visit(self, server: Server, work: Work) -> float:
        name = server.subject.name
        try:
            wrk.rate(self.wrk, server.url(work), self.plan.warm_up)
            server.check(work)
            meter = None
            if self.placement.server:
                meter = Meter(server.process.pid, min(self.placement.server))
            rate = wrk.rate(self.wrk, server.url(work), self.plan.measured)
            if meter is not None:
                self.usages[work.name][name].append(meter.read())
            server.check(work)
        except wrk.WrkError as error:
            logged = server.logged()[-20_000:] or "(nothing)"
            raise wrk.WrkError(f"{name}, {work.name}: {error}\nIts log:\n{logged}") from error
        self.rates[work.name][name].append(rate)
        return rate


def about(plan: rounds.Plan, placement: Placement) -> dict[str, Any]:
    """What the run was made on and with."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rounds": plan.rounds,
        "seconds": plan.measured,
        "clients": CLIENTS,
        "pool": POOL_SIZE,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "placement": str(placement),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def result_file(started: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"{started.replace(':', '')}.json"


def announce(run: Run) -> None:
    minutes = run.plan.seconds(len(run.subjects), len(run.works)) / 60
    print(
        f"{len(run.subjects)} subjects, {len(run.works)} works, {run.plan.rounds} rounds of "
        f"{run.plan.measured} s a visit: about {minutes:.0f} minutes.\n{run.placement}."
    )
    load = run.about["load_before"]
    if load > QUIET:
        print(f"This machine is not quiet (load {load:.2f}): expect wide spreads.")
    print(flush=True)


def serve(subject: Subject, placement: Placement) -> None:
    """Serve one subject on a database of its own until it ends or Ctrl-C."""
    with (
        on_cores(placement.others),
        filled_database() as database_url,
        Server(subject, database_url, placement.server) as server,
    ):
        for work in WORKS:
            server.check(work)
            print(server.url(work))
        print(f"process {server.process.pid}; Ctrl-C ends it", flush=True)
        server.process.wait()


def show(run: Run, path: Path) -> bool:
    """Print and store what the run found; return whether a target was missed."""
    verdicts = report.judge(run.rates, TARGETS)
    print()
    print(report.table(run.rates, run.subjects, run.works))
    print(report.target_lines(verdicts))
    if warning := report.disturbance(run.usages):
        print(f"\n{warning}")
    told = report.as_json(run.rates, verdicts, run.about, run.usages)
    path.write_text(json.dumps(told, indent=1) + "\n")
    print(f"\nJSON: {path}")
    return any(verdict.missed for verdict in verdicts)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # A plain end, so that the servers are stopped: `timeout` and CI send this.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        placement = Placement() if options.no_placing else place(usable_cores())
        if options.serve:
            [subject] = (each for each in SUBJECTS if each.name == options.serve)
            serve(subject, placement)
            return 0
        run = Run(options, placement)
        path = options.json or result_file(run.about["started"])
        if not path.parent.is_dir():
            raise FileNotFoundError(f"The JSON cannot go to {path}: no folder {path.parent}.")
        announce(run)
        run.measure()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ServiceError, DatabaseError, SubjectError, wrk.WrkError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except metadata.PackageNotFoundError as error:
        print(f"{error} Run `make bench`, or: pip install -e '.[bench]'", file=sys.stderr)
        return 2
    missed = show(run, path)
    return 1 if options.strict and missed else 0


if __name__ == "__main__":
    sys.exit(main())
