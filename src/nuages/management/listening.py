"""The sockets that the commands listen on, opened before anything else is started.

So a port in use is reported at once, and requests that come while the application starts wait for
it instead of being refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

ERRORS = {
    errno.EACCES: "You don't have permission to access that {what}.",
    errno.EADDRINUSE: "That {what} is already in use.",
    errno.EADDRNOTAVAIL: "That IP address can't be assigned to.",
}
"""Django's own texts (django.core.management.commands.runserver)."""


def explain(error: OSError, what: str = "port") -> str:
    """Return what a developer reads where a socket cannot be opened."""
    text = ERRORS.get(error.errno) if error.errno is not None else None
    return text.format(what=what) if text else str(error)


def listen_tcp(host: str, port: int, *, ipv6: bool = False, backlog: int = 2048) -> socket.socket:
    """Listen on a host and port; port 0 is any free one. Raises OSError."""
    listener = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET)
    try:
        if os.name == "posix":  # elsewhere the option would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_unix(path: str, *, backlog: int = 2048) -> socket.socket:
    """Listen on a Unix socket that everybody may connect to, as a proxy of another user must.

    A socket that a server left behind is replaced. Raises OSError, with EADDRINUSE where
    somebody listens on it or where a file of another kind is in the way.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EADDRINUSE, f"{path} is a file")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - as said above
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def identity(path: str) -> tuple[int, ...]:
    """Return a tuple that distinguishes this file from a later one at the same path."""
    status = os.stat(path)
    # Inode numbers are used again.
    return status.st_dev, status.st_ino, status.st_ctime_ns


def remove_unix(path: str, made: tuple[int, ...]) -> None:
    """Remove a Unix socket, unless another server has put its own in its place."""
    with contextlib.suppress(FileNotFoundError):
        if identity(path) == made:
            os.unlink(path)


def listen_inherited(descriptor: int) -> socket.socket:
    """Listen on a socket that the parent opened. Raises OSError where there is no such socket."""
    return socket.socket(fileno=os.dup(descriptor))
