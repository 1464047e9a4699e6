"""What is MySQL's own: waits, the state of sessions, errors that end transactions, options."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError
from django.test import override_settings
from pymysql.cursors import SSCursor  # type: ignore[import-untyped]

from nuages import on_loop
from nuages.db import aatomic, acursor, aon_commit, hold_connection
from nuages.db.backends.base import session_warning as session_state
from nuages.db.backends.base.statistics import statistics
from nuages.db.backends.mysql import base, tls
from nuages.db.backends.mysql.connection import Connection
from nuages.exceptions import NotCommitted
from nuages.seams import backends as backend_seams
from tests.integration.conftest import Run
from tests.integration.mysql_tools import server
from tests.integration.pool_tools import (
    Heartbeat,
    assert_whole,
    fetch,
    options,
    proxy_before,
    the_pool,
)
from tests.integration.scope_tools import names, statements, until
from tests.library.models import Author
from tests.services import free_port

pytestmark = pytest.mark.both_loops

LOCK = f"nuages-test-{os.getpid()}"
TABLE = Author._meta.db_table


async def session() -> int:
    """The number of our session."""
    return int(await fetch("SELECT CONNECTION_ID()"))


# At the same time


@override_settings(NUAGES={"RESET_WARNING": False})
def test_three_gathered_queries_wait_on_one_lock_at_the_same_time(
    mysql: dict[str, Any], run: Run, threads: Any
) -> None:
    query = "SELECT GET_LOCK(%s, 30), CONNECTION_ID()"

    async def waiting() -> Any:
        async with acursor() as cursor:
            await cursor.execute(query, [LOCK])
            (row,) = await cursor.fetchall()
            await cursor.execute("SELECT RELEASE_LOCK(%s)", [LOCK])
        return row

    async def main() -> None:
        with server() as observer:
            with observer.locked(LOCK):
                threads.clear()
                tasks = [asyncio.create_task(waiting()) for _ in range(3)]
                await observer.until_running("GET_LOCK", 3)
                assert not any(task.done() for task in tasks)
            rows = await asyncio.gather(*tasks)
            assert {got for got, _ in rows} == {1}
            assert len({number for _, number in rows}) == 3
            threads.assert_none()

            with observer.locked(LOCK):
                async with aatomic():
                    tasks = [asyncio.create_task(waiting()) for _ in range(3)]
                    await observer.until_running("GET_LOCK", 1)
                    observer.unlock()
                    rows = await asyncio.gather(*tasks)
            assert len({number for _, number in rows}) == 1

    run(main)


def test_nothing_blocks_the_loop_and_every_statement_is_awaited(
    mysql: dict[str, Any], run: Run, threads: Any
) -> None:
    async def main() -> None:
        threads.clear()
        statistics.reset()
        await Author.objects.acreate(name="Ursula")
        async with aatomic():
            await Author.objects.acount()
        assert statistics.bridged >= 4
        assert (statistics.blocked, statistics.worker) == (0, 0)
        threads.assert_none()

    run(main)


def test_what_django_asks_of_the_server_is_asked_once(
    mysql: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrappers come and go with every task; each would ask anew."""
    asked: list[str] = []
    query = Connection.query

    def counting(self: Any, sql: Any, unbuffered: bool = False) -> Any:
        if "VERSION()" in str(sql):
            asked.append(str(sql))
        return query(self, sql, unbuffered)

    async def main() -> None:
        monkeypatch.setattr(Connection, "query", counting)
        await Author.objects.acount()
        asked.clear()
        await asyncio.gather(*(Author.objects.acreate(name=f"{n}") for n in range(20)))
        assert asked == []
        base._server_data.clear()
        again = Author.objects.acreate(name="again")
        # With wrappers of its own, which know nothing yet.
        await asyncio.create_task(again, context=contextvars.Context())
        assert len(asked) == 1
        assert connections["default"].mysql_version >= (10, 5)

    run(main)


def test_what_the_server_said_can_be_replaced_as_with_django(
    mysql: dict[str, Any], run: Run
) -> None:
    def work() -> None:
        with transaction.atomic():
            said = connection.mysql_server_data
            with mock.patch.object(connection, "mysql_server_data", {"sql_mode": "WHATEVER"}):
                assert connection.mysql_server_data == {"sql_mode": "WHATEVER"}
            assert connection.mysql_server_data == said

    run(on_loop(work))


def test_a_large_value_goes_and_comes_whole(mysql: dict[str, Any], run: Run) -> None:
    """In many pieces both ways, the loop turning meanwhile."""
    text = "äöü-0123456789" * 300_000

    async def main() -> None:
        async with Heartbeat() as heart:
            before = heart.beats
            assert await fetch("SELECT %s", text) == text
            assert heart.beats > before

    run(main)


# Sessions between two users


@pytest.mark.parametrize(
    ("sql", "look", "clean"),
    [
        ("SET @x = 5", "SELECT @x", None),
        ("SELECT @x := 5", "SELECT @x", None),
        ("SET SESSION wait_timeout = 77", "SELECT @@wait_timeout <> 77", 1),
        ("SET autocommit = 0", "SELECT @@autocommit", 1),
        ("SET NAMES latin1", "SELECT @@character_set_client", "utf8mb4"),
        ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT @@tx_isolation",
         "READ-COMMITTED"),
        ("USE information_schema", "SELECT DATABASE() = 'information_schema'", 0),
        ("CREATE TEMPORARY TABLE left_over (a int)",
         "SELECT count(*) FROM information_schema.tables WHERE table_name = 'left_over'", 0),
        (f"LOCK TABLES {TABLE} WRITE", "SELECT count(*) FROM library_book", 0),
        ("SELECT GET_LOCK('LOCK', 0)", "SELECT IS_FREE_LOCK('LOCK')", 1),
    ],
)  # fmt: skip
def test_what_a_session_was_left_with_is_gone_for_the_next_user(
    mysql: dict[str, Any], run: Run, sql: str, look: str, clean: Any,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    options(max_size=1)
    monkeypatch.setattr(session_state, "warned", set())
    sql, look = sql.replace("'LOCK'", f"'{LOCK}'"), look.replace("'LOCK'", f"'{LOCK}'")

    async def main() -> None:
        first = await session()
        for _ in range(2):
            async with acursor() as cursor:
                await cursor.execute(sql)
            assert await fetch(look) == clean
        assert await session() == first, "reset, not closed"
        assert await fetch("SELECT DATABASE()") == mysql["NAME"]
        assert await fetch("SELECT @@tx_isolation") == "READ-COMMITTED"
        await Author.objects.acreate(name="Ürsula")
        assert await names() == ["Ürsula"]

    run(main)
    assert caplog.text.count("session state") == 1, "warned once"


def test_what_a_hold_leaves_is_meant(
    mysql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options(max_size=1)

    async def main() -> None:
        async with hold_connection():
            await fetch("SET @x = 5")
            assert await fetch("SELECT @x") == 5
        assert await fetch("SELECT @x") is None

    run(main)
    assert "session state" not in caplog.text


def test_the_checks_of_foreign_keys_that_django_switches(
    mysql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Switched back they are no state; left off they are."""
    options(max_size=1)

    async def main() -> None:
        def switched() -> None:
            with connection.constraint_checks_disabled():
                pass
            assert connection.connection.inspect() == "reuse"
            connection.disable_constraint_checking()
            assert connection.connection.inspect() == "reset"

        await on_loop(switched)()
        assert await fetch("SELECT @@foreign_key_checks") == 1

    run(main)
    assert "session state" not in caplog.text


def test_a_procedure_may_leave_anything_so_its_session_is_reset(
    mysql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options(max_size=1)
    with connection.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE PROCEDURE sets() BEGIN SET @x = 5; SELECT 1; END")

    async def main() -> None:
        async with acursor() as cursor:
            await cursor.callproc("sets")
            assert await cursor.fetchall() == [(1,)]
        assert await fetch("SELECT @x") is None

    run(main)
    assert "session state" not in caplog.text


def test_a_session_of_a_server_without_reset_is_closed(
    mysql: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    options(max_size=1)

    async def main() -> None:
        first = await session()
        monkeypatch.setattr("nuages.db.backends.mysql.connection.RESET_CONNECTION", 0xF0)
        await fetch("SET @x = 5")
        assert await fetch("SELECT @x") is None
        assert await session() != first
        assert "could not be reset" in caplog.text

    run(main)


# Errors of the server


def test_a_deadlock_ends_the_whole_transaction(mysql: dict[str, Any], run: Run) -> None:
    """The server has rolled everything back; going on would write outside, unseen."""

    async def main() -> None:
        ours, theirs, *more = [
            (await Author.objects.acreate(name=name)).pk for name in ("a", "b", "c", "d")
        ]
        rename = f"UPDATE {TABLE} SET name = CONCAT(name, 'x') WHERE id = %s"
        with server() as observer:
            observer.rows("BEGIN")
            # The one that wrote more is not the victim.
            for pk in (theirs, *more):
                observer.rows(rename, pk)
            with pytest.raises(TransactionManagementError):
                async with aatomic():
                    await Author.objects.filter(pk=ours).aupdate(name="a!")
                    blocked = asyncio.create_task(
                        Author.objects.filter(pk=theirs).aupdate(name="b!")
                    )
                    await observer.until_running("b!")
                    observer.rows(rename, ours)
                    with pytest.raises(OperationalError, match="1213"):
                        await blocked
                    await Author.objects.acreate(name="half")
            observer.rows("COMMIT")
        assert await names() == ["ax", "bx", "cx", "dx"]
        assert_whole(the_pool())

    run(main)


def test_a_deadlock_of_a_late_task_ends_the_whole_transaction(
    mysql: dict[str, Any], run: Run
) -> None:
    """The block's end waits for the statement; COMMIT would be answered as if it had committed."""

    async def main() -> None:
        ours, theirs, *more = [
            (await Author.objects.acreate(name=name)).pk for name in ("a", "b", "c", "d")
        ]
        rename = f"UPDATE {TABLE} SET name = CONCAT(name, 'x') WHERE id = %s"
        ran: list[str] = []
        late: list[asyncio.Task[Any]] = []

        async def block() -> None:
            async with aatomic():
                wrappers.append(connections["default"])
                await Author.objects.filter(pk=ours).aupdate(name="a!")
                await aon_commit(lambda: ran.append("hook"))
                update = Author.objects.filter(pk=theirs).aupdate(name="b!")
                late.append(asyncio.create_task(update))
                await observer.until_running("b!")

        wrappers: list[Any] = []
        with server() as observer:
            observer.rows("BEGIN")
            # The one that wrote more is not the victim.
            for pk in (theirs, *more):
                observer.rows(rename, pk)
            task = asyncio.create_task(block())
            await until(lambda: bool(wrappers) and wrappers[0].scope.ending is not None)
            observer.rows(rename, ours)
            with pytest.raises(DatabaseError):
                await late[0]
            with pytest.raises(NotCommitted):
                await task
            observer.rows("COMMIT")
        assert ran == []
        assert await names() == ["ax", "bx", "cx", "dx"]
        assert_whole(the_pool())

    run(main)


def test_a_lock_wait_timeout_undoes_its_statement_only(mysql: dict[str, Any], run: Run) -> None:
    mysql["OPTIONS"]["init_command"] = "SET SESSION innodb_lock_wait_timeout = 1"

    async def main() -> None:
        await Author.objects.acreate(name="a")
        with server() as observer:
            observer.rows("BEGIN")
            observer.rows(f"UPDATE {TABLE} SET name = 'ax' WHERE name = 'a'")
            async with aatomic():
                await Author.objects.acreate(name="kept")
                with pytest.raises(OperationalError, match="1205"):
                    await fetch(f"SELECT name FROM {TABLE} WHERE name = 'a' FOR UPDATE")
            observer.rows("ROLLBACK")
        assert await names() == ["a", "kept"]

    run(main)


def test_errors_have_djangos_classes(mysql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        await Author.objects.acreate(name="a")
        with pytest.raises(IntegrityError):
            await Author.objects.acreate(name="a")
        with pytest.raises(IntegrityError):
            await fetch(f"INSERT INTO {TABLE} (name) VALUES (NULL)")
        with pytest.raises(OperationalError):
            await fetch("SELECT no_such_function_1()")

    run(main)


def test_ddl_commits_what_was_before_it(mysql: dict[str, Any], run: Run) -> None:
    """As in stock Django, which therefore runs migrations outside transactions."""

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with aatomic():
                await Author.objects.acreate(name="before")
                await fetch("CREATE TABLE made_inside (a int)")
                await Author.objects.acreate(name="after")
                raise ZeroDivisionError
        assert await names() == ["before"]
        await fetch("DROP TABLE made_inside")
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("when", ["idle", "running", "in a transaction", "at commit"])
def test_a_session_that_the_server_ends(mysql: dict[str, Any], run: Run, when: str) -> None:
    options(max_size=1)

    async def main() -> None:
        number = await session()
        with server() as observer:
            if when == "idle":
                await observer.kill(number)
                await until(lambda: the_pool().stats()["size"] == 0)
            elif when == "running":
                task = asyncio.create_task(fetch("SELECT SLEEP(60)"))
                await observer.until_running("SLEEP")
                await observer.kill(number)
                with pytest.raises(OperationalError, match=r"2013|1927"):
                    await task
            else:
                with pytest.raises(OperationalError):
                    async with aatomic():
                        await Author.objects.acreate(name="lost")
                        await observer.kill(number)
                        if when == "in a transaction":
                            await Author.objects.acount()
        assert await session() != number
        assert await names() == []
        assert_whole(the_pool())

    run(main)


# Unbuffered cursors

MANY = "SELECT seq FROM seq_1_to_50000"


@pytest.mark.parametrize("end", ["close", "drop", "query", "cancel", "leave"])
def test_an_unbuffered_cursor_that_is_not_read_to_its_end(
    mysql: dict[str, Any], run: Run, end: str
) -> None:
    options(max_size=1)

    async def main() -> None:
        async def work() -> None:
            async with hold_connection() as held:

                def read() -> Any:
                    cursor = held.connection.cursor(SSCursor)
                    cursor.execute(MANY)
                    assert [cursor.fetchone() for _ in range(3)] == [(1,), (2,), (3,)]
                    assert not held.connection.is_idle()
                    if end == "close":
                        cursor.close()
                        assert held.connection.is_idle()
                    return cursor

                cursor = await on_loop(read)()
                if end == "cancel":
                    asyncio.current_task().cancel()  # type: ignore[union-attr]
                    await on_loop(cursor.fetchall)()
                elif end == "drop":
                    del cursor
                elif end == "query":
                    with pytest.warns(UserWarning, match="unbuffered result was left incomplete"):
                        assert await fetch("SELECT 7") == 7
                if end in ("drop", "close"):
                    assert await fetch("SELECT 7") == 7

        task = asyncio.create_task(work())
        await asyncio.wait([task])
        assert task.cancelled() == (end == "cancel")
        if end != "cancel":
            task.result()
        assert await fetch("SELECT 8") == 8
        assert_whole(the_pool())

    run(main)


# Connecting


def test_a_server_that_never_greets(mysql: dict[str, Any], run: Run) -> None:
    mysql["OPTIONS"]["connect_timeout"] = 0.1

    async def main() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            mysql["HOST"], mysql["PORT"] = "127.0.0.1", str(deaf.getsockname()[1])
            async with Heartbeat() as heart:
                before = heart.beats
                with pytest.raises(OperationalError, match=r"timed out|2013"):
                    await fetch("SELECT 1")
                assert heart.beats > before + 10
            assert the_pool().stats()["size"] == 0

    run(main)


def test_a_read_timeout_closes_the_connection(mysql: dict[str, Any], run: Run) -> None:
    mysql["OPTIONS"]["read_timeout"] = 0.2

    async def main() -> None:
        with pytest.raises(OperationalError, match=r"2013.*timed out"):
            await fetch("SELECT SLEEP(60)")
        assert the_pool().stats()["size"] == 0
        assert await fetch("SELECT 1") == 1

    run(main)
    with pytest.raises(OperationalError, match=r"2013.*timed out"), connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(60)")


def test_a_server_that_is_away_is_waited_for(mysql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        proxy = proxy_before(dict(mysql), listen=free_port())
        mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
        with pytest.raises(OperationalError, match="2003"):
            await fetch("SELECT 1")
        the_pool().close()
        options(reconnect_timeout=30)
        task = asyncio.create_task(fetch("SELECT 1"))
        await asyncio.sleep(0.05)
        async with proxy:
            assert await task == 1
            the_pool().close()

    run(main)


@pytest.mark.parametrize("reset", [False, True])
def test_a_login_that_breaks_off_is_tried_again(
    mysql: dict[str, Any], run: Run, reset: bool
) -> None:
    options(reconnect_timeout=30)

    async def main() -> None:
        async with proxy_before(dict(mysql)) as proxy:
            mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            proxy.stall("to_client")
            task = asyncio.create_task(fetch("SELECT 1"))
            await proxy.until_kept()
            proxy.cut(reset=reset)
            proxy.resume()
            assert await task == 1
            the_pool().close()

    run(main)


def test_the_unix_socket(mysql: dict[str, Any], run: Run) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@socket")
        path = cursor.fetchone()[0]
    if not Path(path).exists():
        pytest.skip(f"the server's Unix socket {path} is not on this machine")
    mysql["HOST"] = path

    async def main() -> None:
        assert await fetch("SELECT 1") == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await fetch("SELECT SLEEP(60)")
        assert the_pool().stats()["size"] == 1
        assert the_pool().opened == 1

    run(main)


def test_options_as_djangos(mysql: dict[str, Any], run: Run, tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text(
        f"[client]\nuser={mysql['USER']}\npassword={mysql['PASSWORD']}\n"
        f"host={mysql['HOST']}\nport={mysql['PORT']}\n"
    )
    mysql.update(USER="", PASSWORD="", HOST="", PORT="")
    mysql["OPTIONS"] |= {
        "read_default_file": str(file),
        "isolation_level": "repeatable read",
        "charset": "latin1",
        "init_command": "SET @from_options = 7",
        "sql_mode": "STRICT_ALL_TABLES",
    }
    options(max_size=1)

    async def main() -> None:
        for _ in range(2):
            assert await fetch("SELECT @@tx_isolation") == "REPEATABLE-READ"
            assert await fetch("SELECT @@character_set_client") == "latin1"
            assert await fetch("SELECT @from_options") == 7
            assert await fetch("SELECT @@sql_mode") == "STRICT_ALL_TABLES"
            # The second time after a reset.
            await fetch("SET @from_options = 8, sql_mode = ''")

    with override_settings(NUAGES={"RESET_WARNING": False}):
        run(main)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ssl_mode": "REQUIRED"}, "an option of mysqlclient"),
        ({"passwd": "x"}, "Instead: password"),
        ({"no_such_option": 1}, "PyMySQL does not know: no_such_option"),
        ({"isolation_level": "none"}, "Invalid transaction isolation level"),
    ],
)
def test_wrong_options_are_named(
    mysql: dict[str, Any], run: Run, given: dict[str, Any], words: str
) -> None:
    mysql["OPTIONS"] |= given

    async def main() -> None:
        with pytest.raises(ImproperlyConfigured, match=words):
            await fetch("SELECT 1")
        assert the_pool().stats()["size"] == 0

    run(main)


# Both ways


def test_a_connection_may_be_used_on_the_loop_and_in_a_thread_in_turn(
    mysql: dict[str, Any], run: Run
) -> None:
    from asgiref.sync import sync_to_async

    async def main() -> None:
        async with hold_connection():
            first = await session()

            def in_thread() -> int:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT CONNECTION_ID()")
                    return int(cursor.fetchone()[0])

            for _ in range(3):
                assert await sync_to_async(in_thread)() == first
                assert await session() == first
        await until(lambda: the_pool().stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


def test_outside_loops_it_is_django_as_ever(mysql: dict[str, Any]) -> None:
    with transaction.atomic():
        Author.objects.create(name="a")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Author.objects.create(name="b")
        raise ZeroDivisionError
    assert [author.name for author in Author.objects.all()] == ["a"]
    assert connection.is_usable()
    number = connection.connection.thread_id()
    with server() as observer:
        asyncio.run(observer.kill(number))
    assert not connection.is_usable()
    connection.close()
    assert Author.objects.count() == 1


# The driver


def python(code: str, *path: Path) -> str:
    lines = "".join(f"sys.path.insert(0, {str(folder)!r})\n" for folder in path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\n{lines}{textwrap.dedent(code)}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_name_of_mysqlclient_is_only_lent() -> None:
    code = """
        from nuages.db.backends.mysql import base
        from django.db.backends.mysql import base as django_base
        print(sorted(name for name in sys.modules if name.startswith("MySQLdb")))
        print(django_base.version, base.DatabaseWrapper.Database.Error.__module__)
    """
    if "mysqlclient" in str(sys.modules.get("MySQLdb")):
        pytest.skip("mysqlclient is installed here")
    assert python(code) == "[]\n(2, 2, 8, 'final', 1) pymysql.err\n"


def test_a_real_mysqlclient_stays_djangos(tmp_path: Path) -> None:
    """It has the name; our engine asks nothing of it."""
    package = tmp_path / "MySQLdb"
    (package / "constants").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "version_info = (2, 2, 9, 'final', 0)\n__version__ = '2.2.9'\n"
        "class OperationalError(Exception): ...\n"
    )
    (package / "constants" / "__init__.py").write_text("")
    for name in ("CLIENT", "FIELD_TYPE"):
        path = package / "constants" / f"{name}.py"
        path.write_text(f"from pymysql.constants.{name} import *\n")
    (package / "converters.py").write_text("conversions = {}\n")
    code = """
        import MySQLdb
        from nuages.db.backends.mysql import base
        from django.db.backends.mysql import base as django_base
        assert sys.modules["MySQLdb"] is django_base.Database is MySQLdb
        print(django_base.version, base.DatabaseWrapper.Database.Error.__module__)
    """
    assert python(code, tmp_path) == "(2, 2, 9, 'final', 0) pymysql.err\n"


def test_a_missing_driver_is_named(tmp_path: Path) -> None:
    (tmp_path / "pymysql.py").write_text("raise ImportError('none')\n")
    code = """
        from django.core.exceptions import ImproperlyConfigured
        try:
            from nuages.db.backends.mysql import base
        except ImproperlyConfigured as error:
            print(error)
    """
    assert 'pip install "nuages[mysql]"' in python(code, tmp_path)


def test_the_seam_is_in_the_table_where_the_engine_is_used(mysql: dict[str, Any]) -> None:
    (lent,) = (
        seam for seam in backend_seams.seams() if isinstance(seam, backend_seams.MySQLdbImport)
    )
    assert lent.applies()
    assert lent.problem() is None
    mysql["ENGINE"] = "nuages.db.backends.sqlite3"
    assert not lent.applies()
    mysql["ENGINE"] = "nuages.db.backends.mysql"


def test_a_context_for_tls_is_made_once(tmp_path: Path) -> None:
    """PyMySQL makes one for every connection, which reads the system's authorities."""
    made: list[Any] = []

    def make(given: Any) -> Any:
        made.append(given)
        return object()

    assert tls.context_for({}, make) is tls.context_for({}, make)
    assert made == []
    file = tmp_path / "ca.pem"
    file.write_text("")
    first = tls.context_for({"ca": str(file)}, make)
    assert tls.context_for({"ca": str(file)}, make) is first
    assert tls.context_for({"ca": str(file), "check_hostname": False}, make) is not first
    assert len(made) == 2


def test_captured_queries_are_the_codes_own(mysql: dict[str, Any], run: Run) -> None:
    """Not what a connection of the pool says when it is opened."""

    async def main() -> None:
        base._server_data.clear()
        with statements() as sent:
            await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
        assert [sql.split()[0] for sql in sent] == ["SELECT"] * 3

    run(main)


@pytest.mark.filterwarnings("ignore:The 'reconnect' argument")
def test_ping_reconnects_outside_a_loop(mysql: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    raw = connection.connection
    raw._force_close()
    raw.ping(reconnect=True)
    with raw.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == ((1,),)
