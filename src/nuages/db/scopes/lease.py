"""The wrapper whose connection a scope owns, as scopes use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from nuages.db.pool.pool import Session
    from nuages.db.scopes.chain import Chain
    from nuages.db.scopes.family import Family
    from nuages.db.scopes.scope import Scope


class Lease(Protocol):
    """A wrapper, which has a connection of the pool for as long as it works or a scope owns it."""

    alias: str
    role: Literal["plain", "lease", "facade"]
    connection: Any
    session: Session | None
    scope: Scope | None
    """The scope that the wrapper's connection belongs to."""

    family: Family | None
    """The family whose state it shares; None for copies."""
    serves: Chain | None
    """The chain that it serves, outside scopes."""

    forked: bool
    """Whether a block is open on it that the parent process goes on with."""

    seen_by_threads: bool
    """Whether a thread has found it in a scope, and may go on to use it after the scope's end."""
    transaction_over: bool
    """Whether a COMMIT or ROLLBACK was answered since the transaction began."""
    in_atomic_block: bool
    needs_rollback: bool
    autocommit: bool
    atomic_blocks: list[Any]
    savepoint_ids: list[Any]

    def as_member(self, name: str, value: Any) -> Any:
        """Return the value that a member is to have for an attribute set on its family."""

    def is_idle(self) -> bool:
        """Tell whether the connection could serve somebody else right now."""

    lends: bool
    """Whether it is a thread's wrapper, which lends its connection between two statements."""

    def lend(self) -> None:
        """Let others have the connection while it is idle, until it is used here again."""

    def is_kept(self) -> bool:
        """Tell whether its code keeps it while waiting for something other than a statement."""

    def release(self) -> None:
        """Give the connection back to the pool."""

    def note_opened(self, chain: Chain) -> None:
        """Note that `chain` has opened the cursors that are open now."""

    def chain_at_work(self) -> Chain | None:
        """Return a chain that goes on and has a cursor open on it; None for none."""

    def drop_connection(self) -> None:
        """Close the connection without I/O and be as new."""

    def abandon(self) -> None:
        """Close the connection without I/O, in a transaction that goes on to its failure."""

    def end_forgotten(self, when: str) -> None:
        """End a scope that nobody is left to end: close its connection, and say so."""

    def wait_for_end(self, raw: Any) -> None:
        """Block until a connection that was dropped has let its locks go."""

    def forget_closed(self) -> None:
        """Give up the place in the pool of a connection that was closed."""

    closed_in_transaction: bool

    def share(self) -> None:
        """Prepare a test's connection for use by threads other than the test's own."""

    def unshare(self) -> None:
        """Undo `share`."""

    def validate_no_broken_transaction(self) -> None:
        """Raise TransactionManagementError where the calling code's block is broken."""
