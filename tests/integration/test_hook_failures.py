"""An on-commit hook that fails with a database's error: the block is committed, and says so."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction

from nuages import off_loop, on_loop
from nuages.db import aatomic, aon_commit, hold_connection
from nuages.db.transaction import request_connections
from nuages.exceptions import HookFailed, OutcomeUnknown, PoolTimeout
from tests.integration.conftest import Run
from tests.integration.scope_tools import Failure, pool_stats, until
from tests.judge import authors as committed
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

Hook = Callable[[], Any]
Save = Callable[[str, list[Hook]], None]
"""Saves an author in a transaction that has these hooks."""


def save(name: str, hooks: list[Hook]) -> None:
    """What a sync program does."""
    with transaction.atomic():
        Author.objects.create(name=name)
        for hook in hooks:
            transaction.on_commit(hook)


def save_by_hand(name: str, hooks: list[Hook]) -> None:
    transaction.set_autocommit(False)
    try:
        save(name, hooks)
        transaction.commit()
    except BaseException:
        transaction.rollback()
        raise
    finally:
        transaction.set_autocommit(True)


async def asave(name: str, hooks: list[Hook]) -> None:
    async with aatomic():
        await Author.objects.acreate(name=name)
        for hook in hooks:
            await aon_commit(hook)


async def asave_in_hold(name: str, hooks: list[Hook]) -> None:
    async with hold_connection():
        await asave(name, hooks)


async def asave_in_request(name: str, hooks: list[Hook]) -> None:
    """With a connection that is the request's, from first to last."""
    async with request_connections():
        await Author.objects.acount()
        await asave(name, hooks)


@on_loop
async def asave_in_portal(name: str, hooks: list[Hook]) -> None:
    with transaction.atomic():
        await Author.objects.acreate(name=name)
        for hook in hooks:
            transaction.on_commit(hook)


STYLES: dict[str, Any] = {
    "aatomic": asave,
    "hold": asave_in_hold,
    "request": asave_in_request,
    "portal": asave_in_portal,
    "bridge": on_loop(save),
    "by hand": on_loop(save_by_hand),
    "thread": sync_to_async(save),
    "off_loop": on_loop(off_loop(save)),
    "thread by hand": sync_to_async(save_by_hand),
}


@pytest.fixture(params=[*STYLES, "sync program", "sync program by hand"])
def saved(request: pytest.FixtureRequest, run: Run) -> Save:
    """Saves in each way that code has to open a transaction."""
    if request.param == "sync program":
        return save
    if request.param == "sync program by hand":
        return save_by_hand

    def call(name: str, hooks: list[Hook]) -> None:
        async def main() -> None:
            try:
                await STYLES[request.param](name, hooks)
            finally:
                await until(lambda: pool_stats()["used"] == 0)
                assert not connection.in_atomic_block

        run(main)

    return call


def lost() -> None:
    raise OperationalError("server closed the connection")


async def no_connection() -> None:
    raise PoolTimeout(alias="default", timeout=1.0, stats="none free")


async def unknown() -> None:
    raise OutcomeUnknown


def closed() -> None:
    raise InterfaceError("connection already closed")


def bad_query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT no_such_column FROM library_author")


def repeated(work: Callable[[str], None]) -> None:
    """Repeat `work` as the guide says, for whatever the database may have refused."""
    for attempt in range(3):
        try:
            work(f"order {attempt}")
            return
        except DatabaseError:
            continue
        except InterfaceError:
            continue


@pytest.mark.parametrize("hook", [lost, no_connection, unknown, closed, bad_query])
def test_who_repeats_on_database_errors_does_not_repeat_what_is_committed(
    database: str, saved: Save, hook: Hook
) -> None:
    called: list[str] = []

    def later() -> None:
        called.append("later")

    with pytest.raises(HookFailed) as raised:
        repeated(lambda name: saved(name, [lambda: called.append("before"), hook, later]))
    assert committed() == ["order 0"]
    assert called == ["before"]
    error = raised.value
    assert isinstance(error.__cause__, (DatabaseError, InterfaceError))
    text = str(error)
    assert "committed" in text
    assert hook.__qualname__ in text
    assert str(error.__cause__) in text
    assert later.__qualname__ in text
    assert HookFailed.code in text


def test_of_the_last_hook_no_later_one_is_named(database: str, saved: Save) -> None:
    with pytest.raises(HookFailed, match="no hook after it"):
        saved("saved", [lost])
    assert committed() == ["saved"]


def test_an_error_that_is_not_the_databases_stays_what_it_is(database: str, saved: Save) -> None:
    def fail() -> None:
        raise Failure

    with pytest.raises(Failure):
        saved("saved", [fail])
    assert committed() == ["saved"]


def test_a_robust_hooks_error_is_logged_and_later_hooks_run(
    database: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="saved")
            await aon_commit(lost, robust=True)
            await aon_commit(no_connection, robust=True)
            # As it stands, of Django's no name can be logged.
            await aon_commit(functools.partial(lost), robust=True)
            await aon_commit(lambda: called.append("later"))

    with caplog.at_level(logging.ERROR, "django.db.backends.base"):
        run(main)
    assert called == ["later"]
    assert committed() == ["saved"]
    assert "lost" in caplog.text
    assert "no_connection" in caplog.text
    assert len(caplog.records) == 3
    assert "HookFailed" not in caplog.text


def test_the_error_of_a_hooks_own_transaction_is_not_told_as_another(
    database: str, run: Run
) -> None:
    """The hook's block is committed, and so is the one around: one error says both."""

    async def hook() -> None:
        await asave("of the hook", [lost])

    async def main() -> None:
        with pytest.raises(HookFailed) as raised:
            await asave("saved", [hook])
        assert isinstance(raised.value.__cause__, OperationalError)

    run(main)
    assert committed() == ["of the hook", "saved"]


def test_an_error_of_the_block_itself_is_still_the_databases(database: str, saved: Save) -> None:
    """Nothing is committed then, and repeating is right."""
    saved("saved", [])
    with pytest.raises(DatabaseError):
        saved("saved", [lost])
    assert committed() == ["saved"]


def test_outside_a_transaction_it_is_the_callers_own(database: str, run: Run) -> None:
    """Nothing was committed by that call."""

    async def main() -> None:
        with pytest.raises(OperationalError):
            await aon_commit(lost)
        with pytest.raises(OperationalError):
            await on_loop(transaction.on_commit)(no_connection)

    run(main)


def test_a_nested_async_to_sync_block(database: str, run: Run) -> None:
    """A thread's `async_to_sync` commits on the loop."""

    def work() -> None:
        async_to_sync(asave)("saved", [lost])

    async def main() -> None:
        with pytest.raises(HookFailed):
            await sync_to_async(work)()

    run(main)
    assert committed() == ["saved"]
