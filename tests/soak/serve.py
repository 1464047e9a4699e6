"""The server process: uvicorn with uvloop on a socket that the load opened."""

from __future__ import annotations

import logging
import socket
import sys

import uvicorn


def main(descriptor: str) -> None:
    config = uvicorn.Config(
        "tests.soak.asgi:application",
        loop="uvloop",
        http="auto",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,  # Django's, as lines of JSON
    )
    logging.captureWarnings(True)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    main(*sys.argv[1:])
