"""A lease's way out of the pool and back, the reset between two users included."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nuages.bridge import current_bridge, on_loop
from nuages.db.backends.contracts import Verdict
from nuages.db.connections import current_chain
from nuages.db.pool import Pool, Session, logger, pool_for

if TYPE_CHECKING:
    from nuages.db.backends.base import LoopWrapper


def acquire(wrapper: LoopWrapper, loop: asyncio.AbstractEventLoop) -> Session:
    """Check a session out of `wrapper`'s pool on `loop`, from a bridge or from a thread."""
    bridge = current_bridge()
    if bridge is None:
        return asyncio.run_coroutine_threadsafe(_acquire_for_thread(wrapper), loop).result()
    pool = pool_for(wrapper, loop)
    pool.requests += 1
    while (session := pool.acquire_nowait()) is None:
        future = pool.enqueue()
        try:
            session = bridge.wait(future)
        except BaseException:
            pool.withdraw(future)
            raise
        if pool.is_good(session):
            break
        pool.discard(session)
    return session


async def _acquire_for_thread(wrapper: LoopWrapper) -> Session:
    # The pool may be made here, which must be on the loop for it to be closed with the loop.
    session = await pool_for(wrapper, asyncio.get_running_loop()).acquire()
    if session.raw is not None:
        session.raw.detach()
    return session


def on_loop_of(pool: Pool, function: Callable[..., Any], *args: Any) -> None:
    """Call `function` on the thread of the pool's loop: now, or soon from another thread."""
    if asyncio._get_running_loop() is pool.loop or pool.loop.is_closed():
        function(*args)
    else:
        pool.loop.call_soon_threadsafe(function, *args)


def take_back(
    session: Session, verdict: Verdict, wrapper_class: type[Any], settings_dict: dict[str, Any]
) -> None:
    """Give a session back to its pool, on its loop's thread, after what `verdict` says."""
    pool = session.pool
    if verdict == "reset" and not pool.closed and not pool.loop.is_closed():
        pool.run_in_background(functools.partial(_reset, session, wrapper_class, settings_dict))
        return
    if verdict == "reuse" and not pool.closed:
        session.raw.attach(pool)
    pool.release(session, reusable=verdict == "reuse")


async def _reset(
    session: Session, wrapper_class: type[Any], settings_dict: dict[str, Any]
) -> None:
    pool = session.pool

    def reset() -> None:
        chain = current_chain()
        assert chain is not None
        wrapper = wrapper_class(settings_dict, pool.alias)
        wrapper.role = "lease"
        # Receivers and type look-ups find this wrapper by its alias.
        chain.wrappers[pool.alias] = wrapper
        session.raw.attach(pool)
        wrapper._reuse(session)
        try:
            wrapper.reset_session()
        finally:
            wrapper.connection = None
            session.raw.wrapper = None

    try:
        await on_loop(reset)()
    except BaseException as error:
        pool.discard(session)
        if not isinstance(error, Exception):
            raise
        _log_failed_reset(pool, error)
    else:
        pool.release(session)


def _log_failed_reset(pool: Pool, error: Exception) -> None:
    logger.warning("closed a connection of %r that could not be reset: %s", pool.alias, error)
