"""The database: the wheel's PostgreSQL with the one table in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from benchmarks.works import AUTHOR, BODY, ROWS, TITLE, VIEWS
from tests import services

MAX_CONNECTIONS = 1000
"""All subjects' pools may be full at the same time."""

TABLE = """
CREATE TABLE article (
    id bigint PRIMARY KEY,
    title varchar(200) NOT NULL,
    author varchar(100) NOT NULL,
    body text NOT NULL,
    published boolean NOT NULL,
    views integer NOT NULL
)
"""


class DatabaseError(Exception):
    """The server that was given cannot be measured on; the message says why."""


@contextmanager
def filled_database() -> Iterator[str]:
    """Start the server, make and fill the table; yield the database's URL.

    `NUAGES_TEST_POSTGRES_URL` names another server, as it does for the tests. Raises
    DatabaseError where that one takes too few connections.
    """
    options = {"max_connections": str(MAX_CONNECTIONS)}
    with (
        services.postgres_server(options) as server,
        services.fresh_database(server.url) as url,
    ):
        with psycopg.connect(url, autocommit=True) as connection:
            [limit] = connection.execute("SHOW max_connections").fetchone()
            if int(limit) < MAX_CONNECTIONS:
                raise DatabaseError(
                    f"The server of NUAGES_TEST_POSTGRES_URL takes {limit} connections; the "
                    f"benchmark needs max_connections = {MAX_CONNECTIONS}."
                )
            connection.execute(TABLE)
            with (
                connection.cursor() as cursor,
                cursor.copy("COPY article FROM STDIN") as copy,
            ):
                for key in range(1, ROWS + 1):
                    row = (key, TITLE.format(key), AUTHOR.format(key), BODY, True, VIEWS)
                    copy.write_row(row)
            connection.execute("VACUUM (ANALYZE) article")
        yield url
