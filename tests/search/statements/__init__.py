"""What each kind of statement does; importing this registers them all."""

from tests.search.statements import blocks, flow, iterating, queries, tasks

__all__ = ["blocks", "flow", "iterating", "queries", "tasks"]
