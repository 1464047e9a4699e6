"""Additions to migrations: async functions, batches for large tables, patience with locks."""

from nuages.db.migrations.backfill import Backfill

__all__ = ["Backfill"]
