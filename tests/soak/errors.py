"""What an error says of a request: whether a connection was lost, and whether it was committed."""

from __future__ import annotations

from nuages.exceptions import HookFailed

_LOST = frozenset(["OperationalError", "InterfaceError", "OutcomeUnknown"])
HOOK_FAILED = "HookFailed"
"""What a write gets that was committed, and whose hook met a lost connection."""
_AFTER = frozenset(["TransactionManagementError", "ScopeEnded"])
"""What later queries, and other tasks, of a transaction get whose connection was lost."""


def is_lost(errors: str) -> bool:
    """Whether the classes of errors, with commas between, are those of a lost connection."""
    found = set(errors.split(",")) - {HOOK_FAILED}
    return bool(found) and found <= _LOST | _AFTER


def classes(error: BaseException | None) -> set[str]:
    """The names of an exception's class, or of the classes of a group's exceptions.

    With a `HookFailed` goes what the hook raised.
    """
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(classes, error.exceptions))
    if isinstance(error, HookFailed):
        return {type(error).__name__} | classes(error.__cause__)
    return {type(error).__name__}
