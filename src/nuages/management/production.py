"""The server behind `serve`: uvicorn in this process, or its supervisor over worker processes.

Every option is given to uvicorn explicitly, so neither `WEB_CONCURRENCY` nor
`FORWARDED_ALLOW_IPS` nor a change of uvicorn's defaults has any effect.
"""

from __future__ import annotations

import copy
import signal
import socket
import sys
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from django.conf import settings
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from nuages.management.application import load_application

_FACTORY = f"{load_application.__module__}:{load_application.__name__}"


class ServeConfig(uvicorn.Config):
    """uvicorn's configuration, which also travels to the worker processes."""

    def load(self) -> None:
        """Load the application, and configure uvicorn's loggers once more.

        In a worker the application sets Django up, and a LOGGING that disables existing loggers
        would silence uvicorn's, and so the reason why a worker does not start.
        """
        super().load()
        self.configure_logging()


def log_config(use_colors: bool | None) -> dict[str, Any] | None:
    """Return uvicorn's logging, or None where LOGGING names uvicorn's loggers itself."""
    named = getattr(settings, "LOGGING", {}).get("loggers", {})
    if any(name == "uvicorn" or name.startswith("uvicorn.") for name in named):
        return None
    config = copy.deepcopy(LOGGING_CONFIG)
    for formatter in config["formatters"].values():
        formatter["use_colors"] = use_colors
    return config


def run(listener: socket.socket, *, workers: int, **options: Any) -> None:
    """Serve on `listener` until SIGTERM or SIGINT, then return or raise SystemExit(0).

    `options` are those of `uvicorn.Config`. Raises SystemExit(3), uvicorn's code, where the
    application does not start; an error while it is imported is raised unchanged.
    """
    # Loaded here even where only the workers need it: an application that cannot be imported is
    # found before any process is started, and its error is seen once.
    application = load_application()
    config = ServeConfig(
        application if workers == 1 else _FACTORY,
        factory=workers > 1,
        workers=workers,
        interface="asgi3",
        lifespan="on",
        **options,
    )
    if workers > 1:
        supervisor = Multiprocess(config, sockets=[listener])
        supervisor.run()
        if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
            sys.exit(STARTUP_FAILURE)
        return
    # uvicorn repeats the signal that stopped it, once it has stopped in order: that is the end
    # asked for, and no error.
    signal.signal(signal.SIGTERM, _exit)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        sys.exit(0)


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)
