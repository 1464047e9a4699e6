"""PostgreSQL through psycopg 3, awaited on the event loop."""
