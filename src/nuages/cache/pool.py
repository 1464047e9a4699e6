"""The connections of one server on one event loop: redis-py's, checked out and given back here.

redis-py's own pools await locks when a connection is given back: a cancellation there loses the
connection for good, and before Python 3.13 a cancellation that overtakes a `Condition.notify()`
loses the next waiter's turn. Here giving back never waits, and waiting is first come, first
served.

A connection that was interrupted between its command and the answer is closed by redis-py's
`Connection` itself (CVE-2023-28858, CVE-2023-28859 were about versions that did not).
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import ssl
from collections import deque
from collections.abc import Coroutine
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from nuages.exceptions import CachePoolTimeout
from nuages.tracebacks import hide_frames

LOST: tuple[type[Exception], ...] = (RedisConnectionError,)
"""Errors that mean that a connection is gone; the next one may be sound."""
_NOT_SENT = "_nuages_not_sent"
PAUSES = (0.01, 0.1, 0.5)
"""Seconds before the second, third and fourth try: a restarted server is back within these."""


async def pause(seconds: float) -> None:
    """Wait before another try, spread so that tasks do not come back all at once."""
    await asyncio.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - a pause


def was_sent(error: Exception) -> bool:
    """Tell whether the command may have reached the server."""
    return not hasattr(error, _NOT_SENT)


def _is_refusal(error: Exception) -> bool:
    """Tell whether another try would fail the same way: for a wrong password, or certificate."""
    # redis-py wraps the first on a Unix socket, and wraps the second.
    return any(
        isinstance(each, (AuthenticationError, ssl.SSLCertVerificationError))
        for each in (error, error.__cause__, error.__context__)
    )


async def _in_empty_context(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await `coroutine` so that a connection keeps nothing of the request that opens it.

    A transport and its callbacks hold the context they were made in for as long as they live.
    """
    loop = asyncio.get_running_loop()
    await loop.create_task(coroutine, context=contextvars.Context())


class LoopPool(ConnectionPool):
    """A pool of at most `max_connections`; further callers wait up to `pool_timeout` seconds."""

    def __init__(self, *args: Any, pool_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pool_timeout = pool_timeout
        self._queue: deque[asyncio.Future[AbstractConnection]] = deque()

    async def get_connection(
        self, command_name: Any = None, *keys: Any, **options: Any
    ) -> AbstractConnection:
        """Check out a connection, connected; wait in line where all are in use."""
        connection = self._take()
        if connection is None:
            connection = await self._wait()
        try:
            if not connection.is_connected or await connection.can_read():
                # New, closed by the server, or with an answer that nobody has read.
                await self._connect(connection)
        except BaseException:
            self._give(connection)
            raise
        return connection

    async def command(self, *args: Any) -> Any:
        """Send one command and return the server's answer as it is.

        What redis-py's client does around it (telemetry, options, retries) costs as much again.
        """
        connection = await self.get_connection()
        try:
            await connection.send_command(*args)
            return await connection.read_response()
        finally:
            await self.release(connection)

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back."""
        try:
            # This is for credentials that are renewed while a connection is in use.
            given: Any = connection  # without types in redis-py
            await given.re_auth()
            if given.should_reconnect():
                await connection.disconnect(nowait=True)
        finally:
            self._give(connection)

    def stats(self) -> dict[str, int]:
        """Return counts: connections that are idle, those in use, and tasks that wait."""
        return {
            "idle": len(self._available_connections),
            "used": len(self._in_use_connections),
            "waiting": sum(not future.done() for future in self._queue),
        }

    def _take(self) -> AbstractConnection | None:
        if self._queue:
            return None
        connection: AbstractConnection
        if self._available_connections:
            connection = self._available_connections.pop()
        elif len(self._in_use_connections) < self.max_connections:
            make: Any = self.make_connection
            connection = make()
        else:
            return None
        self._in_use_connections.add(connection)
        return connection

    async def _wait(self) -> AbstractConnection:
        future: asyncio.Future[AbstractConnection]
        future = asyncio.get_running_loop().create_future()
        self._queue.append(future)
        try:
            async with asyncio.timeout(self.pool_timeout):
                return await future
        except TimeoutError:
            self._withdraw(future)
            raise CachePoolTimeout(
                timeout=self.pool_timeout, max_connections=self.max_connections
            ) from None
        except BaseException:
            self._withdraw(future)
            raise

    def _withdraw(self, future: asyncio.Future[AbstractConnection]) -> None:
        if future.done() and not future.cancelled():
            self._give(future.result())  # the connection came just as the wait ended
        elif future in self._queue:
            self._queue.remove(future)

    def _give(self, connection: AbstractConnection) -> None:
        while self._queue:
            future = self._queue.popleft()
            if not future.done():
                future.set_result(connection)
                return
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)

    async def _connect(self, connection: Any) -> None:
        """Connect (anew). Nothing has been sent yet, so trying again is always safe."""
        for seconds in (*PAUSES, None):
            try:
                await connection.disconnect(nowait=True)
                await _in_empty_context(connection.connect())
                return
            except LOST as error:
                # redis-py has the password in its frames while it connects.
                hide_frames(error, ("redis",))
                if seconds is None or _is_refusal(error):
                    setattr(error, _NOT_SENT, True)
                    raise
                await pause(seconds)
            except (RedisError, asyncio.CancelledError) as error:
                hide_frames(error, ("redis",))
                await connection.disconnect(nowait=True)
                raise


class SentinelLoopPool(LoopPool, SentinelConnectionPool):
    """A `LoopPool` for a service that sentinels watch; connections ask these where to go."""
