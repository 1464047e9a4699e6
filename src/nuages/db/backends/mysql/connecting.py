"""Opening the socket to a server: name resolution, several addresses, Unix sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from nuages.bridge import current_bridge

_NUMERIC = socket.AI_NUMERICHOST


def open_socket(
    host: str, port: int, *, timeout: float | None, bind_address: str | None = None
) -> socket.socket:
    """Connect over TCP; `timeout` seconds for each address of `host`. Raises OSError.

    In a bridge nothing blocks; a name is looked up, if need be, in a thread, as asyncio does.
    """
    source = None if bind_address is None else (bind_address, 0)
    bridge = current_bridge()
    if bridge is None:
        connected = socket.create_connection((host, port), timeout, source)
    else:
        connected = bridge.wait(_open_on_loop(host, port, timeout, source))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connected


def open_unix_socket(path: str, *, timeout: float | None) -> socket.socket:
    """Connect to the Unix socket at `path`. Raises OSError."""
    bridge = current_bridge()
    if bridge is not None:
        return bridge.wait(_connected(socket.AF_UNIX, path, timeout, None))
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout)
        connected.connect(path)
    except BaseException:
        connected.close()
        raise
    return connected


async def _open_on_loop(
    host: str, port: int, timeout: float | None, source: tuple[str, int] | None
) -> socket.socket:
    kind = socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(host, port, type=kind, flags=_NUMERIC)
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                found = await loop.getaddrinfo(host, port, type=kind)
        except TimeoutError:
            raise TimeoutError("timed out while the name was looked up") from None
    failures: list[OSError] = []
    for family, _, _, _, address in found:
        try:
            return await _connected(family, address, timeout, source)
        except OSError as error:
            failures.append(error)
    raise failures[-1] if failures else OSError(f"{host} has no address")


async def _connected(
    family: int, address: Any, timeout: float | None, source: tuple[str, int] | None
) -> socket.socket:
    connected = socket.socket(family, socket.SOCK_STREAM)
    try:
        connected.setblocking(False)
        if source is not None:
            connected.bind(source)
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(connected, address)
    except TimeoutError:
        connected.close()
        raise TimeoutError("timed out") from None
    except BaseException:
        connected.close()
        raise
    return connected
