"""The session and the user of a request, loaded before an `async def` view."""

from __future__ import annotations

from typing import Any


def preload(request: Any) -> None:
    """Load the session and the user of `request`, from its bridge."""
