"""A lease's way out of the pool and back, the reset between two users included."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nuages.bridge import current_bridge, on_loop
from nuages.db.backends.base import session_check
from nuages.db.backends.base.driver import GiveBack
from nuages.db.pool.pool import Pool, Session, logger, pool_for
from nuages.db.scopes.chain import count_held, current_chain
from nuages.exceptions import PoolClosed

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper


def acquire(wrapper: LoopWrapper, loop: asyncio.AbstractEventLoop) -> Session:
    """Check a session out of `wrapper`'s pool on `loop`, from a bridge or from a thread."""
    bridge = current_bridge()
    if bridge is None:
        return _acquire_in_thread(wrapper, loop)
    pool = pool_for(wrapper, loop)
    pool.requests += 1
    session = pool.acquire_nowait()
    if session is None and (held := count_held(pool.alias, loop)):
        session = pool.acquire_nowait(held)
    else:
        held = 0
    if session is None:
        future = pool.enqueue(held)
        try:
            session = pool.handed_over(bridge.wait(future))
        except BaseException:
            pool.withdraw(future)
            raise
    return session


def _acquire_in_thread(wrapper: LoopWrapper, loop: asyncio.AbstractEventLoop) -> Session:
    waiting = _acquire_for_thread(wrapper, count_held(wrapper.alias, loop))
    try:
        future = asyncio.run_coroutine_threadsafe(waiting, loop)
    except RuntimeError:
        waiting.close()
        if not loop.is_closed():
            raise
        # The thread has outlived the loop; what it had until now may have gone to somebody else.
        raise PoolClosed(alias=wrapper.alias) from None
    return future.result()


async def _acquire_for_thread(wrapper: LoopWrapper, held: int) -> Session:
    # The pool may be made here: on the loop, so that it is closed with the loop.
    session = await pool_for(wrapper, asyncio.get_running_loop()).acquire(held)
    if session.raw is not None:
        session.raw.detach()
    return session


def lend(session: Session, wrapper_class: type[Any], settings_dict: dict[str, Any]) -> None:
    """Let others have a session that needs no reset, until it is used again (in a thread)."""
    session.pool.lend(
        session, functools.partial(_take_back_lent, session, wrapper_class, settings_dict)
    )


def _take_back_lent(
    session: Session, wrapper_class: type[Any], settings_dict: dict[str, Any]
) -> None:
    session.raw.wrapper = None
    session.raw.state_is_meant = False
    take_back(session, "reuse", wrapper_class, settings_dict)


def take_back(
    session: Session, verdict: GiveBack, wrapper_class: type[Any], settings_dict: dict[str, Any]
) -> None:
    """Give a session back to its pool, on its loop's thread, after what `verdict` says."""
    pool = session.pool
    checked = verdict == "reuse" and session.baseline is not None
    if (verdict == "reset" or checked) and not pool.closed and not pool.loop.is_closed():
        work = session_check.compare if checked else _reset
        pool.run_in_background(
            functools.partial(_in_background, session, wrapper_class, settings_dict, work)
        )
        return
    if verdict == "reuse" and not pool.closed:
        session.raw.attach(pool)
    pool.release(session, reusable=verdict == "reuse")


def _reset(wrapper: LoopWrapper, session: Session) -> None:
    wrapper.reset_session()
    if session.baseline is not None and session.raw.is_alive():
        session_check.begin(wrapper, session)


async def _in_background(
    session: Session,
    wrapper_class: type[Any],
    settings_dict: dict[str, Any],
    work: Callable[[LoopWrapper, Session], None],
) -> None:
    """Do `work` with a session that nobody uses, and give it back to its pool."""
    pool = session.pool

    def do() -> None:
        chain = current_chain()
        assert chain is not None
        wrapper = wrapper_class(settings_dict, pool.alias)
        wrapper.role = "lease"
        # Receivers and type look-ups find this wrapper by its alias.
        chain.wrappers[pool.alias] = wrapper
        session.raw.attach(pool)
        wrapper._reuse(session)
        try:
            work(wrapper, session)
        finally:
            wrapper.connection = None
            session.raw.wrapper = None

    try:
        await on_loop(do)()
    except BaseException as error:
        pool.discard(session)
        if not isinstance(error, Exception):
            raise
        _log_failed_reset(pool, error)
    else:
        pool.release(session)


def _log_failed_reset(pool: Pool, error: Exception) -> None:
    logger.warning("closed a connection of %r that could not be reset: %s", pool.alias, error)
