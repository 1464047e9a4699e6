"""What a statement leaves in a MySQL session, told by its text."""

from __future__ import annotations

import pytest

from nuages.db.backends.mysql.session_state import trace_of


@pytest.mark.parametrize(
    "sql",
    [
        "SET SESSION sql_mode = ''",
        "set names latin1",
        "  /* a comment */ SET @x = 1",
        "-- a line\nSET @x = 1",
        "# a line\nSET autocommit = 0",
        "/*!50000 SET @x = 1 */",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET GLOBAL a = 1, SESSION b = 2",
        "CREATE TEMPORARY TABLE t (a int)",
        "CREATE OR REPLACE TEMPORARY TABLE t (a int)",
        "LOCK TABLES t READ",
        "FLUSH TABLES WITH READ LOCK",
        "HANDLER t OPEN",
        "PREPARE s FROM 'SELECT 1'",
        "SELECT GET_LOCK('a', 1)",
        "select get_lock ('a', 1)",
        "SELECT @x := 5",
        "SELECT @`a b` := 5",
        "SELECT name INTO @x FROM t",
        "UPDATE t SET a = (@x := a)",
    ],
)
def test_state(sql: str) -> None:
    assert trace_of(sql.encode()) == "state"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "(SELECT 1) UNION (SELECT 2)",
        "INSERT INTO t VALUES ('x@example.org')",
        "INSERT INTO t VALUES ('GET_LOCK(1)')",
        "INSERT INTO t VALUES ('it''s @x := 1')",
        "INSERT INTO t VALUES ('it\\'s @x := 1')",
        'INSERT INTO t VALUES ("@x := 1")',
        "SELECT @x",
        "SELECT settings FROM t",
        "CREATE TABLE temporary_things (a int)",
        "UPDATE t SET a = 1",
        "SET GLOBAL max_connections = 5",
        "SET @@GLOBAL.max_connections = 5",
        "SET PASSWORD = ''",
        "FLUSH TABLES",
        "BEGIN",
        "BEGIN WORK;",
        "START TRANSACTION",
        "COMMIT",
        "SAVEPOINT `s`",
        "",
    ],
)
def test_nothing(sql: str) -> None:
    assert trace_of(sql.encode()) == ""


@pytest.mark.parametrize(
    "sql",
    [
        "CALL f()",
        "BEGIN NOT ATOMIC SET @x = 1; END",
        "EXECUTE IMMEDIATE 'SET @x = 1'",
        "XA START 'a'",
    ],
)
def test_maybe(sql: str) -> None:
    assert trace_of(sql.encode()) == "maybe"


@pytest.mark.parametrize("sql", ["USE other", "use `other`;"])
def test_another_database(sql: str) -> None:
    assert trace_of(sql.encode()) == "use"


def test_the_checks_that_django_switches() -> None:
    assert trace_of(b"SET foreign_key_checks=0") == "checks off"
    assert trace_of(b"SET foreign_key_checks = 1;") == "checks on"
    assert trace_of(b"SET foreign_key_checks = 1, sql_mode = ''") == "state"
