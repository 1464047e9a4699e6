"""The load: calls `wrk` and reads its report. An error in it fails the run."""

from __future__ import annotations

import re
import shutil
import subprocess

from benchmarks.works import CLIENTS

ANSWER_TIMEOUT = 20
"""Seconds that wrk waits for an answer before it counts an error."""


class WrkError(Exception):
    """wrk is not there, failed, or was answered with errors; the message says what to do."""


def find() -> str:
    """Return wrk's path; raises WrkError that says how to install it."""
    if (path := shutil.which("wrk")) is None:
        raise WrkError(
            "The benchmark drives its load with wrk, which is not installed here. Install it: "
            "`apt-get install wrk` (Debian, Ubuntu), `brew install wrk` (macOS), or build it "
            "from https://github.com/wg/wrk."
        )
    return path


def rate(path: str, url: str, seconds: int) -> float:
    """Load `url` for that long with one thread; return the requests answered in a second."""
    command = [
        *(path, "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--timeout", f"{ANSWER_TIMEOUT}s"),
        url,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 2 * ANSWER_TIMEOUT
    )
    if done.returncode != 0:
        raise WrkError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return read(done.stdout)


def read(report: str) -> float:
    """Return the rate in wrk's report; raises WrkError if it tells of an error, or of nothing."""
    if errors := re.findall(r"^\s*((?:Socket errors|Non-2xx or 3xx responses):.*)$", report, re.M):
        raise WrkError(
            "A benchmark of errors is worthless: wrk reports\n  "
            + "\n  ".join(errors)
            + f"\nin\n{report}"
        )
    found = re.search(r"^Requests/sec:\s*([\d.]+)\s*$", report, re.M)
    if found is None or float(found[1]) == 0:
        raise WrkError(f"wrk reports no answered request in\n{report}")
    return float(found[1])
