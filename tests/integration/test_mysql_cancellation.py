"""A cancelled statement ends on the MySQL server; its session is at rest then, or closed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import select
import threading
import time
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings

from nuages import on_loop
from nuages.db import aatomic, acursor, aon_commit, hold_connection
from nuages.db.backends.mysql import connection as mysql_connection
from nuages.db.backends.mysql.kill_query import Killer
from nuages.exceptions import BlockInterrupted, OutcomeUnknown
from nuages.test import FaultProxy
from tests.integration.conftest import Run
from tests.integration.mysql_tools import OURS, server
from tests.integration.pool_tools import (
    assert_whole,
    cancelled,
    fetch,
    options,
    proxy_before,
    the_pool,
)
from tests.integration.scope_tools import names, until
from tests.integration.sweep_tools import Cut, settled
from tests.library.models import Author

pytestmark = pytest.mark.both_loops

SLEEP = "SELECT SLEEP(60)"


async def session() -> int:
    return int(await fetch("SELECT CONNECTION_ID()"))


def test_a_cancelled_query_ends_on_the_server_and_its_session_goes_on(
    mysql: dict[str, Any], run: Run
) -> None:
    options(max_size=1)

    async def main() -> None:
        number = await session()
        with server() as observer:
            task = asyncio.create_task(fetch(SLEEP))
            await observer.until_running("SLEEP")
            await cancelled(task)
            await observer.until_idle()
            assert await session() == number
            # The connection that sent KILL QUERY is gone.
            await observer.until_sessions(1)
            assert_whole(the_pool())

    run(main)


def test_a_timeout_in_a_transaction_marks_it_for_rollback(mysql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        with pytest.raises(BlockInterrupted):
            async with aatomic():
                await Author.objects.acreate(name="Nobody")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await fetch(SLEEP)
                with pytest.raises(transaction.TransactionManagementError):
                    await Author.objects.acount()
        assert await names() == []
        assert the_pool().opened == 1
        assert_whole(the_pool())

    run(main)


def test_a_cancelled_transaction_rolls_back_and_goes_on(mysql: dict[str, Any], run: Run) -> None:
    options(max_size=1)

    async def main() -> None:
        async def work() -> None:
            async with aatomic():
                await Author.objects.acreate(name="Nobody")
                await fetch(SLEEP)

        number = await session()
        with server() as observer:
            task = asyncio.create_task(work())
            await observer.until_running("SLEEP")
            await cancelled(task)
            await observer.until_idle()
        assert await names() == []
        assert await session() == number
        assert_whole(the_pool())

    run(main)


def test_a_kill_that_comes_late_hits_nobody_elses_statement(
    mysql: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement ends by itself before KILL QUERY is sent: the session is idle then, and gets a
    statement that may be killed before anybody else's."""
    options(max_size=1)
    kill = Killer.kill
    lock = f"late {mysql['NAME']}"  # other processes test on the same server

    async def main() -> None:
        number = await session()
        with server() as observer:

            def late(self: Killer) -> None:
                observer.unlock()
                while observer.value(f"SELECT command {OURS} AND id = %s", number) != "Sleep":
                    pass
                kill(self)

            confirmed: list[bytes] = []
            execute = mysql_connection.Connection._execute_command

            def noting(self: Any, command: int, sql: Any) -> None:
                if sql == b"DO 0":
                    confirmed.append(sql)
                execute(self, command, sql)

            monkeypatch.setattr(mysql_connection.Connection, "_execute_command", noting)
            monkeypatch.setattr(Killer, "kill", late)
            for _ in range(5):
                with observer.locked(lock):
                    task = asyncio.create_task(fetch("SELECT GET_LOCK(%s, 60)", lock))
                    await observer.until_running("GET_LOCK")
                    await cancelled(task)
                assert await session() == number
                assert observer.value("SELECT IS_USED_LOCK(%s)", lock) is None
            assert len(confirmed) >= 5

    with override_settings(NUAGES={"RESET_WARNING": False}):
        run(main)


def test_cancelled_at_any_moment_the_next_statement_is_whole(
    mysql: dict[str, Any], run: Run
) -> None:
    """Wherever the cancellation strikes: before, while and after the server answers."""
    options(max_size=1)

    async def main() -> None:
        await session()
        struck = 0
        for spins in [*range(8)] * 4:
            task = asyncio.create_task(fetch("SELECT BENCHMARK(20000, MD5('x')), 'old'"))
            for _ in range(spins):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            struck += task.cancelled()
            assert await fetch("SELECT %s", f"new {spins}") == f"new {spins}"
        assert struck
        assert_whole(the_pool())

    run(main)


def test_gathered_cancellations(mysql: dict[str, Any], run: Run) -> None:
    options(max_size=5)

    async def main() -> None:
        with server() as observer:
            tasks = [asyncio.create_task(fetch(SLEEP)) for _ in range(5)]
            await observer.until_running("SLEEP", 5)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
            await observer.until_idle()
            assert the_pool().opened == 5
            rows = await asyncio.gather(*(fetch("SELECT %s", n) for n in range(20)))
            assert rows == list(range(20))
            assert the_pool().opened == 5

    run(main)


def test_begin_cancelled_leaves_no_transaction_behind(mysql: dict[str, Any], run: Run) -> None:
    """`SET AUTOCOMMIT = 0` may have had its effect: the same task goes on in autocommit."""

    async def main() -> None:
        async def work(spins: int) -> None:
            task = asyncio.current_task()
            assert task is not None

            def strike(count: int) -> None:
                if count:
                    task.get_loop().call_soon(strike, count - 1)
                else:
                    task.cancel()

            strike(spins)
            try:
                async with aatomic():
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                task.uncancel()
            await Author.objects.acreate(name=f"after {spins}")

        for spins in range(8):
            await asyncio.create_task(work(spins))
        with server() as observer:
            assert observer.value(f"SELECT count(*) FROM {Author._meta.db_table}") == 8
        assert_whole(the_pool())

    run(main)


def test_cancelled_during_rollback(mysql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        async def work() -> None:
            async with aatomic():
                await Author.objects.acreate(name="Nobody")
                task = asyncio.current_task()
                assert task is not None
                task.get_loop().call_soon(task.cancel)
                raise ZeroDivisionError

        await asyncio.wait([task := asyncio.create_task(work())])
        assert task.cancelled()
        assert await names() == []
        assert_whole(the_pool())

    run(main)


# COMMIT


class Site:
    """A transaction whose COMMIT stays in a proxy until it is let go, or cut off."""

    def __init__(self, entry: dict[str, Any], proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.done: list[str] = []
        self.at_commit = asyncio.Event()
        entry.update(HOST="127.0.0.1", PORT=str(proxy.port))

    async def work(self) -> None:
        async with aatomic():
            await Author.objects.acreate(name="Ursula")
            await aon_commit(lambda: self.done.append("hook"))
            self.proxy.stall("to_server", new=False)
            self.at_commit.set()


def test_a_commit_is_awaited_although_its_task_is_cancelled(
    mysql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        async with proxy_before(dict(mysql)) as proxy:
            site = Site(mysql, proxy)
            task = asyncio.create_task(site.work())
            await site.at_commit.wait()
            for _ in range(3):
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            proxy.resume()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert site.done == ["hook"], "it was committed"
            assert await names() == ["Ursula"]
            assert the_pool().opened == 1
            assert_whole(the_pool())
            the_pool().close()

    run(main)


def test_an_answer_that_comes_together_with_the_cancellation_is_seen(
    mysql: dict[str, Any], run: Run
) -> None:
    """Taken over from the socket while nobody waited for it any more, it comes no second time."""
    options(max_size=1)

    async def write() -> None:
        async with aatomic():
            await Author.objects.acreate(name="together")

    async def main() -> None:
        await session()
        [place] = the_pool()._idle
        raw = place.raw
        answers = select.poll()
        answers.register(raw._sock._fd, select.POLLIN)
        for point in itertools.count(1):
            cut = Cut(write(), range(point, point + 1), "early", lambda: answers.poll(1000))
            task = asyncio.create_task(cut.run())
            await asyncio.wait([task])
            if not cut.cancelled:
                break
            assert task.cancelled()
            await settled()
            assert raw.is_open(), f"at {point} the answer was waited for until the timeout"
        assert point > 3

    with override_settings(NUAGES={"COMMIT_TIMEOUT": 2, "CANCEL_TIMEOUT": 2}):
        run(main)


@pytest.mark.parametrize("how", ["cut", "timeout"])
def test_the_outcome_of_a_commit_may_be_unknown(
    mysql: dict[str, Any], run: Run, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with proxy_before(dict(mysql)) as proxy:
            site = Site(mysql, proxy)
            task = asyncio.create_task(site.work())
            await site.at_commit.wait()
            await asyncio.sleep(0)
            if how == "cut":
                proxy.cut()
                proxy.resume()
                with pytest.raises(OutcomeUnknown):
                    await task
            else:
                with caplog.at_level(logging.ERROR, "nuages"):
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError) as caught:
                        await task
                proxy.resume()
                assert isinstance(caught.value.__cause__, OutcomeUnknown)
                assert OutcomeUnknown.code in caplog.text
            assert site.done == []
            assert the_pool().stats()["size"] == 0

    with override_settings(NUAGES={"COMMIT_TIMEOUT": 0.1}):
        run(main)


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_lost_after_the_answer_to_commit_is_no_error(
    mysql: dict[str, Any], run: Run, reset: bool
) -> None:
    """`SET AUTOCOMMIT = 1` comes behind it. Whoever got its error would repeat what is done."""
    done: list[str] = []

    async def work() -> None:
        async with aatomic():
            await Author.objects.acreate(name="Ursula")
            await aon_commit(lambda: done.append("hook"))

    async def main() -> None:
        async with proxy_before(dict(mysql)) as proxy:
            mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            proxy.stall("to_server", at=b"SET AUTOCOMMIT = 1")
            task = asyncio.create_task(work())
            await proxy.until_kept()
            proxy.cut(reset=reset)
            await task
            assert done == ["hook"]
            assert_whole(the_pool())
            proxy.resume()
            assert await names() == ["Ursula"]
            the_pool().close()

    run(main)


def test_the_same_in_a_thread_without_a_loop(mysql: dict[str, Any], run: Run) -> None:
    """As under WSGI, or in a script."""
    done: list[Any] = []

    def work() -> None:
        try:
            with transaction.atomic():
                Author.objects.create(name="Ursula")
                transaction.on_commit(lambda: done.append("hook"))
            done.append(Author.objects.count())
        except Exception as error:
            done.append(error)
        finally:
            connection.close()

    async def main() -> None:
        async with proxy_before(dict(mysql)) as proxy:
            mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            proxy.stall("to_server", at=b"SET AUTOCOMMIT = 1")
            thread = threading.Thread(target=work)
            thread.start()
            await proxy.until_kept()
            proxy.cut()
            proxy.resume()
            await asyncio.to_thread(thread.join)
        assert done == ["hook", 1]

    run(main)


# What cannot be brought to its end


def test_a_second_cancellation_shortens_the_cleanup_to_closing_the_socket(
    mysql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with server() as observer:
            async with proxy_before(dict(mysql)) as proxy:
                mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
                task = asyncio.create_task(fetch(SLEEP))
                await observer.until_running("SLEEP")
                proxy.stall()
                proxy.accepted.clear()
                task.cancel()
                await proxy.accepted.wait()  # the side connection, which gets no answer
                assert not task.done()
                await cancelled(task)
                assert the_pool().stats()["size"] == 0
            await observer.end_all()
        assert "cancelled again" in caplog.text

    run(main)


def test_a_statement_whose_session_has_ended_needs_no_cancelling(
    mysql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The news of the end has yet to arrive; it is nothing to warn of."""

    async def main() -> None:
        with server() as observer:
            async with proxy_before(dict(mysql)) as proxy:
                mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
                task = asyncio.create_task(fetch(SLEEP))
                await observer.until_running("SLEEP")
                proxy.stall("to_client", new=False)
                await observer.end_all()
                await observer.until_sessions(0)
                await cancelled(task)
                assert the_pool().stats()["size"] == 0
        assert [one for one in caplog.records if one.name.startswith("nuages")] == []

    run(main)


def test_a_connection_that_was_reset_may_yet_be_cancelled(mysql: dict[str, Any], run: Run) -> None:
    """Its socket does not know any more to whom it was connected."""

    async def main() -> None:
        async with proxy_before(dict(mysql)) as proxy:
            mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            async with hold_connection():
                number = await session()
                raw: Any = connection.connection
                proxy.cut(reset=True)
                errors = select.poll()
                errors.register(raw._sock._fd, 0)
                await until(lambda: bool(errors.poll(0)))
                with pytest.raises(OSError, match="not connected"):
                    raw._sock.getpeername()
                side = await on_loop(raw.beside)(time.monotonic() + 20)
                assert side.thread_id() != number
                side.terminate()

    run(main)


@override_settings(NUAGES={"CANCEL_TIMEOUT": 0.1})
def test_a_server_that_does_not_answer_loses_its_connection(
    mysql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with server() as observer:
            async with proxy_before(dict(mysql)) as proxy:
                mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
                task = asyncio.create_task(fetch(SLEEP))
                await observer.until_running("SLEEP")
                proxy.stall()
                await cancelled(task)
                assert the_pool().stats()["size"] == 0
            await observer.end_all()
        assert "could not be cancelled" in caplog.text

    run(main)


def test_another_server_behind_the_address_is_not_asked_to_kill(
    mysql: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """There the number is somebody else's session."""

    async def main() -> None:
        with server() as observer:
            async with hold_connection() as held:
                await session()
                held.connection.identity = ("another host", 3306, 1)
                task = asyncio.create_task(fetch(SLEEP))
                await observer.until_running("SLEEP")
                number = held.connection.thread_id()
                await cancelled(task)
                assert "another server" in caplog.text
                assert not held.connection.is_alive()
                # Nobody has killed it.
                assert observer.value(f"SELECT count(*) {OURS} AND id = %s", number) == 1
                await observer.kill(number)

    run(main)


def test_a_coroutine_closed_by_hand_drops_its_connection_without_io(
    mysql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        with server() as observer:
            await session()
            coroutine = fetch(SLEEP)
            future = coroutine.send(None)
            assert future is not None
            coroutine.close()
            assert the_pool().stats()["used"] == 0
            assert await fetch("SELECT 1") == 1
            await observer.end_all()
            assert await fetch("SELECT 1") == 1
            assert_whole(the_pool())

    run(main)


def test_connecting_is_cancelled(mysql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        async with proxy_before(dict(mysql)) as proxy:
            mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            proxy.stall()
            proxy.accepted.clear()
            task = asyncio.create_task(fetch("SELECT 1"))
            await proxy.accepted.wait()
            await cancelled(task)
            assert the_pool().stats()["size"] == 0

    run(main)


def test_a_half_sent_statement_closes_its_connection(mysql: dict[str, Any], run: Run) -> None:
    """The server has not got it, so there is nothing to cancel, and no way back."""

    async def main() -> None:
        async with proxy_before(dict(mysql)) as proxy:
            mysql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            await session()
            proxy.stall("to_server", new=False)
            waiting: list[Any] = []
            wait = mysql_connection.Connection._wait

            def noting(self: Any, transport: Any, writing: bool, timeout: Any) -> None:
                waiting.append(writing)
                wait(self, transport, writing, timeout)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(mysql_connection.Connection, "_wait", noting)
                task = asyncio.create_task(fetch("SELECT LENGTH(%s)", "x" * 20_000_000))
                await until(lambda: True in waiting)
                await cancelled(task)
            assert the_pool().stats()["size"] == 0
            proxy.resume()

    run(main)


def test_a_procedures_further_results_are_drained(mysql: dict[str, Any], run: Run) -> None:
    options(max_size=1)

    async def main() -> None:
        await fetch(
            "CREATE OR REPLACE PROCEDURE slow() BEGIN SELECT 1; SELECT SLEEP(60); SELECT 2; END"
        )
        number = await session()

        async def work() -> None:
            async with acursor() as cursor:
                await cursor.execute("CALL slow()")
                await cursor.run(lambda raw: raw.nextset())

        with server() as observer:
            task = asyncio.create_task(work())
            await observer.until_running("SLEEP")
            await cancelled(task)
            await observer.until_idle()
        assert await session() == number

    run(main)
