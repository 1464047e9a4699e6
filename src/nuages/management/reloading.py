"""Django's autoreload, with an orderly end.

Django's own command kills the serving process when it is stopped: the outer process waits a
quarter of a second after Ctrl-C, and not at all after SIGTERM. Clean-up of the project would not
run. Here both processes give the clean-up `STOP_TIMEOUT` seconds; a second Ctrl-C gives it none.

What watches the files, and when the code is loaded anew, is django.utils.autoreload.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from django.utils import autoreload

STOP_TIMEOUT = 5.0
"""Seconds that the serving process gets to end."""


def run_with_reloader(main: Callable[..., Any], stop: Callable[[], Any], **options: Any) -> None:
    """Run `main(**options)` in a thread of a process that is started anew when files change.

    `stop` is called in that process before it ends, whatever the reason. Exit codes are Django's:
    0 for Ctrl-C and SIGTERM, else that of the serving process.
    """
    if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
        _supervise()
    try:
        autoreload.run_with_reloader(main, **options)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is ending
        stop()


def _supervise() -> NoReturn:
    """Start the serving process again and again (`restart_with_reloader`, but patient)."""
    signal.signal(signal.SIGTERM, _interrupt)
    environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    if getattr(sys.stdout, "write_through", False):  # python -u, as Django 6.1 does
        environment["PYTHONUNBUFFERED"] = "1"
    code = 3
    while code == 3:
        arguments = autoreload.get_child_arguments()
        process = subprocess.Popen(arguments, env=environment, close_fds=False)  # noqa: S603 - itself
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _end(process)
            code = 0
    sys.exit(code)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make the process end, and wait: only a terminal has sent the Ctrl-C to it, too."""
    try:
        process.terminate()
        process.wait(STOP_TIMEOUT + 1)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
