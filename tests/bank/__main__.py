"""`python -m tests.bank`: serve the bank, ask for transfers, break everything, compare.

    python -m tests.bank [--database NAME] [--minutes N] [--seed N]

--database is postgresql, mysql (a MariaDB of the tests' own) or sqlite. It prints its time limit
and fails past it, and at anything that is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.bank import verdict
from tests.bank.disturb import Disturbance
from tests.bank.load import Load
from tests.bank.server import ROOT, Site
from tests.faults import servers
from tests.faults.databases import Database, MariaDB, Postgres, SQLite

DATABASES = ("postgresql", "mysql", "sqlite")
GRACE = 150.0
"""Seconds beside those of the load."""
LINES = 40


def main() -> int:
    """Run it; returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.bank")
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    limit = options.minutes * 60 + GRACE
    print(f"Bank: {options.minutes:g} minutes on {options.database}; seed {options.seed}; "
          f"time limit {limit / 60:.1f} minutes", flush=True)  # fmt: skip
    with _database(options.database) as database, tempfile.TemporaryFile("w+") as log:
        os.environ["BANK_DATABASE"] = json.dumps(database.entry())
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        }
        subprocess.run([sys.executable, "-m", "tests.bank.prepare"], env=environment, check=True)
        try:
            return asyncio.run(_bank(options, database, log, limit))
        except BaseException:
            log.seek(0)
            print("The server's log ends with:", *log.read().splitlines()[-LINES:], sep="\n  ")
            raise


@contextmanager
def _database(name: str) -> Iterator[Database]:
    """A server that may be killed, or a file."""
    if name == "sqlite":
        with tempfile.TemporaryDirectory() as home:
            yield _SQLite(Path(home) / "bank.sqlite3")
        return
    starts = {"postgresql": (Postgres, servers.postgres), "mysql": (MariaDB, servers.mariadb)}
    kind, start = starts[name]
    with start() as server:
        database = kind(server)
        database.create()
        yield database


class _SQLite(SQLite):
    def entry(self) -> dict[str, Any]:
        # What reads first and writes then could not wait for its turn.
        return super().entry() | {"OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20}}


async def _bank(options: argparse.Namespace, database: Database, log: Any, limit: float) -> int:
    site = Site(log)
    try:
        async with asyncio.timeout(limit):
            site.start()
            load = Load(site.port, _styles(), options.seed, not isinstance(database, SQLite))
            disturbance = Disturbance(site, database, random.Random(options.seed))
            disturbing = asyncio.create_task(disturbance.run())
            running = asyncio.create_task(load.run(options.minutes * 60))
            await asyncio.wait([disturbing, running], return_when=asyncio.FIRST_COMPLETED)
            disturbing.cancel()
            with suppress(asyncio.CancelledError):
                await disturbing
            await running
            site.check()
            await site.stop(signal.SIGTERM)
    finally:
        site.close()
    wrong = [*load.wrong, *site.crashes]
    if (hit := sum(load.failed.values())) > disturbance.most_hit:
        wrong.append(f"{hit} requests failed, {disturbance.most_hit} may have lost a connection")
    wrong += verdict.judge(load.ledger, _found(database), _hooked(), _detached(database))
    _report(load, disturbance)
    for each in wrong[:LINES]:
        print(f"WRONG: {each}")
    if wrong:
        log.seek(0)
        print("The server's log ends with:", *log.read().splitlines()[-LINES:], sep="\n  ")
    print(f"FAILED: {len(wrong)} things are wrong" if wrong else "Every sum is exact")
    return 1 if wrong else 0


def _found(database: Database) -> verdict.Found:
    return verdict.Found(
        dict(database.rows("SELECT number, balance FROM bank_account")),  # type: ignore[arg-type]
        database.rows("SELECT reference, source, target, amount FROM bank_transfer"),  # type: ignore[arg-type]
        Counter(key for (key,) in database.rows("SELECT reference FROM bank_told")),
        Counter(key for (key,) in database.rows("SELECT reference FROM bank_tried")),
    )


def _styles() -> list[str]:
    """The names of the views, which need Django's settings to be imported."""
    _set_up()
    from tests.bank.urls import views

    return list(views())


def _hooked() -> tuple[str, ...]:
    from tests.bank.styles import HOOKED

    return HOOKED


def _detached(database: Database) -> tuple[str, ...]:
    return () if isinstance(database, SQLite) else ("detached_audit",)


def _set_up() -> None:
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.bank.settings"
    django.setup()


def _report(load: Load, disturbance: Disturbance) -> None:
    styles = Counter(load.ledger.asked[key].style for key in load.ledger.acknowledged)
    print(f"{len(load.ledger.asked):,} transfers asked for in {len(load.styles)} styles")
    print(f"{len(load.ledger.acknowledged):,} acknowledged, of each style {min(styles.values())}"
          f" to {max(styles.values())}")  # fmt: skip
    print(f"{load.left:,} left by their client, {load.cut:,} cut, {load.given:,} given up,"
          f" {load.refused:,} refused")  # fmt: skip
    print("Disturbances:", ", ".join(f"{n} {kind}" for kind, n in disturbance.counts.items()))
    print("Answers with an error:", sum(load.failed.values()))
    for error, count in load.failed.most_common(LINES):
        print(f"  {count} {error}")


if __name__ == "__main__":
    sys.exit(main())
