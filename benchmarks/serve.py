"""Serves one ASGI application with uvicorn on a socket that the caller opened.

    python -m benchmarks.serve MODULE:NAME DESCRIPTOR on|off

The last argument is for the lifespan protocol. Since the caller opens the socket, its port is
known and taken before the server starts, and a first request waits until it serves.
"""

import socket
import sys

import uvicorn


def main(application: str, descriptor: str, lifespan: str) -> None:
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan=lifespan,
        access_log=False,
        log_level="warning",
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    main(*sys.argv[1:])
