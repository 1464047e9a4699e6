"""An on-commit hook that is due at once, called as Django calls it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("django.db.backends.base")


def call_hook(function: Callable[[], Any], robust: bool) -> None:
    """Call a hook outside a transaction; with `robust` an error of it is logged, not raised.

    As `BaseDatabaseWrapper.on_commit` does, which goes by the whole connection's transaction.
    """
    if not robust:
        function()
        return
    try:
        function()
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        logger.error("Error calling %s in on_commit() (%s).", name, error, exc_info=True)
