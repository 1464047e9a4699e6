"""The outcome of a COMMIT whose connection broke."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db.utils import OperationalError

from nuages.bridge import current_bridge
from nuages.exceptions import OutcomeUnknown


class KnownOutcome:
    """Mixin for wrappers whose server is at the other end of a socket."""

    if TYPE_CHECKING:
        connection: Any
        vendor: str

        is_lost: Callable[[Exception], bool]
        _terminate: Callable[[], None]

    def _commit(self) -> None:
        alive = self.connection is not None and self.connection.is_alive()
        try:
            super()._commit()  # type: ignore[misc]
        except OperationalError as error:
            if alive and not isinstance(error, OutcomeUnknown) and self.is_lost(error):
                self._terminate()
                unknown = OutcomeUnknown()
                bridge = current_bridge()
                if bridge is not None and bridge.deferred_cancel is not None:
                    # The task is cancelled, and what it ends with is seldom looked at.
                    logging.getLogger(f"nuages.{self.vendor}").error("%s", unknown)
                raise unknown from error
            raise
