"""SQLite through the standard sqlite3 module, in a worker thread of each connection."""
