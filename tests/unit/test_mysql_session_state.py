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
        "SELECT @x /* why */ := 5",
        "SELECT @'a b' := 5",
        "SELECT 1 INTO/**/@x",
        "SELECT `get_lock`('a', 1)",
        "SELECT get_lock/**/('a', 1)",
        "DO GET_LOCK('a', 1)",
        "SELECT 1 -- don't\n, GET_LOCK('a', 1), 'x'",
        "CREATE/**/TEMPORARY TABLE t (a int)",
        "CREATE /*!50000 TEMPORARY */ TABLE t (a int)",
        "CREATE OR/**/REPLACE TEMPORARY TABLE t (a int)",
        "FLUSH TABLES WITH/**/READ LOCK",
        "GET DIAGNOSTICS @n = NUMBER",
        "SET STATEMENT max_statement_time = 1 FOR SELECT GET_LOCK('a', 1)",
        "SET STATEMENT max_statement_time = 1 FOR CREATE TEMPORARY TABLE t (a int)",
        "SET GLOBAL max_connections = GET_LOCK('a', 1)",
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
        "SET STATEMENT max_statement_time = 1 FOR SELECT 1",
        "INSERT INTO t VALUES ('me@example.org:=')",
        "INSERT INTO t VALUES ('a: b', '; SET @x = 1')",
        "SELECT 1;",
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
        "IF 1 THEN SET @x = 1; END IF",
        "l: BEGIN NOT ATOMIC SET @x = 1; END",
        "SET STATEMENT max_statement_time = 1 FOR CALL f()",
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


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1; SELECT 2", "maybe"),
        ("SELECT 1; SET @x = 1", "maybe"),
        ("SELECT 1 ; ", ""),
        ("INSERT INTO t VALUES ('a; b')", ""),
        ("SET @x = 1; SELECT 1", "state"),
    ],
)
def test_several_statements(sql: str, expected: str) -> None:
    assert trace_of(sql.encode(), several=True) == expected


@pytest.mark.parametrize(("escapes", "expected"), [(True, ""), (False, "state")])
def test_the_mode_without_escapes(escapes: bool, expected: str) -> None:
    sql = b"SELECT '\\', GET_LOCK('a', 1), ' '"
    assert trace_of(sql, escapes=escapes) == expected
