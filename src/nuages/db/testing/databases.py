"""Test databases on our engines: made, copied and dropped as Django does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.backends.base.creation import BaseDatabaseCreation

from nuages.db.testing import transactions as testing

if TYPE_CHECKING:
    _Base = BaseDatabaseCreation
else:
    _Base = object


class TestDatabases(_Base):
    """Mixin for Django's `DatabaseCreation` classes.

    Where a test run makes its databases, the hooks in `testing.run_hooks` are called; a production
    process pays nothing for that. A database cannot be copied or dropped while connections are
    open, so ours are closed before.
    """

    __test__ = False

    def _create_test_db(self, *args: Any, **kwargs: Any) -> Any:
        """Do as Django does.

        `create_test_db`, which calls this, is left alone: its warnings name its caller's line.
        """
        testing.begin_run()
        return super()._create_test_db(*args, **kwargs)  # type: ignore[misc]

    def setup_worker_connection(self, _worker_id: Any) -> None:
        """Do as Django does."""
        testing.begin_run()
        super().setup_worker_connection(_worker_id)

    def clone_test_db(self, *args: Any, **kwargs: Any) -> None:
        """Do as Django does."""
        testing.close_pools(self.connection.alias)
        super().clone_test_db(*args, **kwargs)

    def destroy_test_db(self, *args: Any, **kwargs: Any) -> None:
        """Do as Django does."""
        testing.close_pools(self.connection.alias)
        super().destroy_test_db(*args, **kwargs)
