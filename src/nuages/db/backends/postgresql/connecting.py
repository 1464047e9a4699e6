"""Connecting on the loop: name resolution, several hosts, timeouts, as libpq has them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg import errors as e
from psycopg import waiting
from psycopg._conninfo_attempts_async import conninfo_attempts_async
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import make_conninfo, timeout_from_conninfo

T = TypeVar("T", bound=psycopg.Connection[Any])

INTERVAL = 0.1
"""Seconds between two looks by psycopg at what else has happened."""
CANCEL_AGAIN = 0.1
"""Seconds until a statement that goes on is cancelled once more; doubled each time."""


async def connect_on_loop(
    kind: type[T],
    conninfo: str,
    *,
    autocommit: bool = False,
    prepare_threshold: int | None = 5,
    context: Any = None,
    row_factory: Any = None,
    cursor_factory: Any = None,
    **kwargs: Any,
) -> T:
    """Connect as psycopg's `connect()` does, nothing blocking; returns a connection of `kind`.

    Raises psycopg's errors; where several attempts failed, one error names them all.
    """
    params = kind._get_connection_params(conninfo, **kwargs)
    timeout = timeout_from_conninfo(params)
    connection: T | None = None
    failures: list[tuple[e.Error, str]] = []
    for attempt in await _attempts(params, timeout):
        where = ", ".join(f"{k}: {attempt.get(k)!r}" for k in ("host", "port", "hostaddr"))
        steps = begun = kind._connect_gen(make_conninfo("", **attempt))
        try:
            if _libpq_resolves(attempt):
                steps = await _begun_in_thread(steps)
            connection = await waiting.wait_conn_async(steps, interval=INTERVAL, timeout=timeout)
        except e._WaitTimeout:
            failures.append((e.ConnectionTimeout("connection timeout expired"), where))
        except e.Error as error:
            failures.append((error, where))
        else:
            break
        finally:
            # An attempt that was cancelled or timed out lets go of its socket now, not when its
            # last traceback is collected. (While still in its thread it cannot be closed.)
            with suppress(ValueError):
                begun.close()
    if connection is None:
        last = failures[-1][0]
        if len(failures) == 1:
            raise last.with_traceback(None)
        lines = [str(last), "Multiple connection attempts failed. All failures were:"]
        lines += [f"- {where}: {error}" for error, where in failures]
        raise type(last)("\n".join(lines), pgconn=last.pgconn)
    connection._autocommit = autocommit
    connection.prepare_threshold = prepare_threshold
    if row_factory:
        connection.row_factory = row_factory
    if cursor_factory:
        connection.cursor_factory = cursor_factory
    if context:
        connection._adapters = AdaptersMap(context.adapters)
    return connection


async def _attempts(params: Any, timeout: float) -> list[Any]:
    """Look up the hosts' names, in `timeout` seconds each; libpq would wait for the resolver."""
    hosts = str(params.get("host") or "").count(",") + 1
    try:
        async with asyncio.timeout(timeout * hosts):
            return await conninfo_attempts_async(params)
    except TimeoutError:
        raise e.ConnectionTimeout(
            f"connection timeout expired while {params.get('host')!r} was looked up"
        ) from None


def _libpq_resolves(attempt: Any) -> bool:
    """Tell whether libpq itself would look up a host name (a service's), which blocks."""
    return (
        not attempt.get("host")
        and not attempt.get("hostaddr")
        and not os.environ.get("PGHOST")
        and bool(attempt.get("service") or os.environ.get("PGSERVICE"))
    )


async def _begun_in_thread(steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    loop = asyncio.get_running_loop()
    first = await loop.run_in_executor(None, next, steps)
    return _resumed(first, steps)


def _resumed(first: Any, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    ready = yield first
    while True:
        try:
            state = steps.send(ready)
        except StopIteration as stop:
            return stop.value
        ready = yield state
