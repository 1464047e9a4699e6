"""The word to a developer whose session state had to be discarded."""

from __future__ import annotations

from nuages.conf import setting
from nuages.db.pool import logger

warned: set[str] = set()
"""The kinds of statement that were warned of."""


def warn(alias: str, statement: str) -> None:
    """Warn, once for each kind of statement, of a session that had to be made clean."""
    word = " ".join(statement.split()[:2])
    if setting("RESET_WARNING") and word not in warned:
        warned.add(word)
        logger.warning(
            "A connection of %r came back with session state (%s), which was discarded. "
            "Use SET LOCAL in a transaction, hold_connection() for as long as the state is "
            'needed, or NUAGES["CONNECTION_PER"] = "request".',
            alias,
            statement,
        )
