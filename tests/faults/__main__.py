"""`make faults`: every fault on real servers, a table of what became of it, in a time limit.

    python -m tests.faults [--limit SECONDS] [--loops both] [--write-docs] [arguments of pytest]

Prints its time limit first, and fails past it. `--loops both` tries every fault on asyncio's loop
and on uvloop, else on uvloop alone. `--write-docs` puts the table into docs/faults.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 300.0
GRACE = 15.0
"""Seconds that a run gets to clean up."""
PAST_LIMIT = 124
"""The status of timeout(1)."""


def main(arguments: list[str]) -> int:
    """Run the faults; returns pytest's status, or PAST_LIMIT."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", add_help=False)
    parser.add_argument("--limit", type=float, default=LIMIT)
    options, rest = parser.parse_known_args(arguments)
    print(f"faults: time limit {options.limit:g} s", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent)]
    command += ["-q", "-p", "no:logging", "-p", "no:cacheprovider", *rest]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(options.limit)
    except subprocess.TimeoutExpired:
        _end(process)
        print(f"faults: FAILED, not done after {options.limit:g} s", flush=True)
        return PAST_LIMIT
    except BaseException:
        _end(process)
        raise
    took = time.monotonic() - began
    print(f"faults: {'ok' if status == 0 else 'FAILED'} after {took:.0f} s of {options.limit:g} s")
    return status


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it as by Ctrl-C, so that disks are unmounted; where that takes long, at once.

    The servers end with it, either way: their keepers wait for the end of their input.
    """
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
