"""The contract that a driver's connection keeps, and where it may be used."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nuages.bridge import current_bridge

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.pool.pool import Pool

GiveBack = Literal["reuse", "reset", "close"]


class RawConnection(Protocol):
    """A driver's connection, as the pool and the wrapper use it."""

    wrapper: LoopWrapper | None
    """The wrapper that uses the connection now."""

    def is_alive(self) -> bool:
        """Tell, without a round trip, whether it may be used."""

    def is_idle(self) -> bool:
        """Tell whether nothing is under way on it: no statement, transaction or open cursor.

        True if closed, because the pool must hear of it, and the next query gets another one.
        """

    def is_working(self) -> bool:
        """Tell whether a statement is in flight."""

    def is_outside_transaction(self) -> bool:
        """Tell whether it is in no transaction."""

    def inspect(self) -> GiveBack:
        """Return what must be done with the connection before another user gets it."""

    state_is_meant: bool
    """Whether the session's state was set on purpose, in a hold: nobody need be warned."""

    recent: deque[Any] | None
    """The statements of its last user, where sessions are checked."""

    def wait_for_statement(self) -> None:
        """Wait until the statement in flight, if there is one, has ended."""

    def quiesce(self) -> bool:
        """Wait for the statement in flight (from the test's own thread, all others being stopped).

        Returns False where the statement cannot end any more.
        """

    def attach(self, pool: Pool) -> None:
        """Prepare for waiting on the pool's loop."""

    def detach(self) -> None:
        """Prepare for use by a thread."""

    def terminate(self) -> None:
        """Close at once, without waiting."""


def may_do_io() -> bool:
    """Tell whether sync database code may run here: in a bridge, or without a loop."""
    return (
        asyncio._get_running_loop() is None
        or current_bridge() is not None
        or bool(os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"))
    )
