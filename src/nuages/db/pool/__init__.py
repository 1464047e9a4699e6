"""The connections of one database on one event loop."""
