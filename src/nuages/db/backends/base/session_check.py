"""State left in a session though no statement told, found in development by asking the server.

A function of the project's own, a trigger, or a call past the driver's cursors may set something
that neither command tags nor texts show. With NUAGES["CHECK_SESSIONS"] (by default where DEBUG is
on) a session is compared, each time it comes back, to what it was when it was opened. Without the
setting nothing is asked and nothing is kept.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.conf import settings

from nuages.conf import setting
from nuages.db.backends.base import session_warning as session_state

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.pool.pool import Session

logger = logging.getLogger("nuages.sessions")

Snapshot = frozenset[tuple[str, str, str]]
"""What is set in a session: kind, name, value."""

_RECENT = 5
"""How many statements of a connection's last user are remembered."""


def is_on() -> bool:
    """Tell whether sessions are to be checked."""
    value = setting["CHECK_SESSIONS"]
    return settings.DEBUG if value is None else bool(value)


def begin(wrapper: LoopWrapper, session: Session) -> None:
    """Remember the state of a session that was just opened, or reset."""
    try:
        session.baseline = wrapper.snapshot()
    except wrapper.Database.Error as error:
        if not wrapper.connection.is_alive():
            raise
        logger.warning("sessions of %r cannot be checked: %s", wrapper.alias, error)
        session.baseline = None
        return
    session.raw.recent = deque(maxlen=_RECENT)


def compare(wrapper: LoopWrapper, session: Session) -> None:
    """Warn of what was left in the session and reset the session; leave a clean one as it is."""
    raw = session.raw
    recent = [_text(statement) for statement in raw.recent]
    found = wrapper.snapshot()
    if found == session.baseline:
        raw.recent.clear()
        return
    left = sorted({f"{kind} {name}".strip() for kind, name, _ in found ^ session.baseline})
    _warn(wrapper.alias, left, recent)
    raw.session_state, raw.state_is_meant = ", ".join(left), True
    wrapper.reset_session()
    if raw.is_alive():
        begin(wrapper, session)


def _text(statement: Any) -> str:
    if isinstance(statement, bytes):
        statement = statement.decode("utf-8", "replace")
    return session_state.without_values(" ".join(str(statement).split()))[:200]


def _warn(alias: str, left: Iterable[str], recent: list[str]) -> None:
    what = ", ".join(left)
    if (key := f"{alias}: {what}") in session_state.warned:
        return
    session_state.warned.add(key)
    logger.warning(
        "A connection of %r came back with something in its session that no statement told: %s. "
        'It was reset, but only since NUAGES["CHECK_SESSIONS"] is on: in production the next '
        "user gets it. Do what sets it inside `async with hold_connection():`, or use "
        'NUAGES["CONNECTION_PER"] = "request". Last executed: %s',
        alias,
        what,
        "; ".join(recent) or "nothing that was seen",
    )
