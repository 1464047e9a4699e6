"""A test's transaction, databases and loop."""
