"""The warning to a developer whose session state had to be discarded."""

from __future__ import annotations

import re

from nuages.conf import setting
from nuages.db.pool.pool import logger

warned: set[str] = set()
"""The kinds of statement that have been warned of."""

_STRING = re.compile(
    r"""(['"`])(?:\\.|\1\1|(?!\1).)*(?:\1|\Z)|(\$\w*\$).*?(?:\2|\Z)""", re.DOTALL | re.ASCII
)
_NUMBER = re.compile(r"\d+")


def without_values(statement: str) -> str:
    """Return a statement, or its beginning, with `...` in place of what it quotes.

    Drivers write parameters into the text, and a log is no place for them.
    """
    return _STRING.sub(lambda match: f"{match[1] or match[2]}...{match[1] or match[2]}", statement)


def warn(alias: str, statement: str) -> None:
    """Warn, once for each kind of statement, of a session that had to be made clean."""
    statement = without_values(statement)
    kind = _NUMBER.sub("0", " ".join(statement.split()[:2]))
    if setting["RESET_WARNING"] and kind not in warned:
        warned.add(kind)
        logger.warning(
            "A connection of %r came back with session state (%s), which was discarded. "
            "Use SET LOCAL in a transaction, hold_connection() for as long as the state is "
            'needed, or NUAGES["CONNECTION_PER"] = "request".',
            alias,
            statement,
        )
