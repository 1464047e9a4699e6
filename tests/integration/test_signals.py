"""Sync and async receivers, by each of the four ways to send, in every situation."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.dispatch import Signal
from django.test import override_settings

from nuages import on_loop
from nuages.exceptions import SendInCoroutine
from nuages.handling import receivers as dispatch
from tests.integration.asgi_client import where
from tests.integration.conftest import Counts, Run
from tests.integration.scope_tools import Failure, receiving

ping = Signal()
variable: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("seen", default=())


@pytest.fixture(params=["gather", "task group"])
def like_task_group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """How async receivers end together: as up to Django 6.0, as from 6.1."""
    like = bool(request.param == "task group")
    monkeypatch.setattr(dispatch, "LIKE_TASK_GROUP", like)
    return like


@contextmanager
def connected(*receivers: Callable[..., Any]) -> Iterator[None]:
    """Connect receivers of `ping` in this order."""
    for receiver in receivers:
        ping.connect(receiver, weak=False)
    try:
        yield
    finally:
        for receiver in receivers:
            assert ping.disconnect(receiver)


def sync_one(**named: Any) -> str:
    return f"sync {where()}"


async def async_one(**named: Any) -> str:
    await asyncio.sleep(0)
    return f"async {where()}"


on_loop_one = on_loop(sync_one)


def failing(**named: Any) -> None:
    raise Failure("sync")


async def async_failing(**named: Any) -> None:
    await asyncio.sleep(0)
    raise Failure("async")


def sender_of(robust: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return (ping.send_robust, ping.asend_robust) if robust else (ping.send, ping.asend)


def sent_from(run: Run, situation: str, robust: bool) -> Any:
    """Send `ping`, and return the answers."""
    send, asend = sender_of(robust)

    async def awaiting() -> Any:
        return await asend(None)

    calls: dict[str, Callable[[], Any]] = {
        "coroutine": lambda: run(awaiting),
        "portal": lambda: run(on_loop(awaiting)),
        "bridge": lambda: run(on_loop(send), None),
        "thread": lambda: run(sync_to_async(send), None),
        "thread that awaits": lambda: run(sync_to_async(async_to_sync(awaiting))),
        "sync program": lambda: send(None),
        "sync program that awaits": lambda: async_to_sync(awaiting)(),
    }
    return calls[situation]()


SITUATIONS = {
    # Where a sync receiver of the project runs, and an async one.
    "coroutine": ("thread", "loop"),
    "portal": ("thread", "loop"),
    "bridge": ("loop", "loop"),
    "thread": ("thread", "loop"),
    "thread that awaits": ("thread", "loop"),
    # There the main thread is where no loop is.
    "sync program": ("loop", "thread"),
    "sync program that awaits": ("loop", "thread"),
}


@pytest.mark.parametrize("robust", [False, True], ids=["", "robust"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_way_in_every_situation(
    run: Run, situation: str, robust: bool, like_task_group: bool
) -> None:
    """Sync receivers first, each in its place, then async ones; what they return is returned."""
    sync, asynchronous = SITUATIONS[situation]
    with connected(async_one, sync_one, on_loop_one):
        answers = sent_from(run, situation, robust)
    assert answers == [
        (sync_one, f"sync {sync}"),
        (async_one, f"async {asynchronous}"),
        (on_loop_one, f"sync {asynchronous}"),
    ]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_errors_come_out(run: Run, situation: str, like_task_group: bool) -> None:
    for receivers, message in [
        ((failing, async_one), "sync"),
        ((sync_one, async_failing), "async"),
    ]:
        with connected(*receivers), pytest.raises(Failure, match=message):
            sent_from(run, situation, robust=False)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_robust_errors_are_returned_and_logged(
    run: Run, situation: str, like_task_group: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        connected(failing, sync_one, async_failing, async_one),
        caplog.at_level(logging.ERROR, "django.dispatch"),
    ):
        answers = sent_from(run, situation, robust=True)
    assert [receiver for receiver, _ in answers] == [failing, sync_one, async_failing, async_one]
    assert [str(error) for _, error in answers[::2]] == ["sync", "async"]
    assert [type(error) for _, error in answers[::2]] == [Failure, Failure]
    logged = [record.getMessage() for record in caplog.records]
    assert [message for message in logged if "send_robust" in message] == [
        "Error calling failing in Signal.send_robust() (sync)",
        "Error calling async_failing in Signal.send_robust() (async)",
    ]


@pytest.mark.parametrize("robust", [False, True], ids=["", "robust"])
def test_send_in_a_coroutine_says_what_to_do(run: Run, robust: bool) -> None:
    """Before anybody was called."""
    called: list[str] = []

    def receiver(**named: Any) -> None:
        called.append(where())

    async def main() -> None:
        with connected(receiver):
            sender_of(robust)[0](None)
            with connected(async_one), pytest.raises(SendInCoroutine, match="asend"):
                sender_of(robust)[0](None)
        assert called == ["loop"]

    run(main)
    called.clear()


# Where sync receivers of asend() run


def test_what_the_project_put_on_the_loop_needs_no_thread(run: Run, threads: Counts) -> None:
    async def main() -> None:
        with connected(on_loop_one, async_one):
            assert [a for _, a in await ping.asend(None)] == ["sync loop", "async loop"]
        with override_settings(NUAGES={"SYNC_VIEWS": "loop"}), connected(sync_one):
            assert await ping.asend(None) == [(sync_one, "sync loop")]
        threads.assert_none()
        with connected(sync_one):  # the control
            assert await ping.asend(None) == [(sync_one, "sync thread")]
        assert threads.submitted

    run(main)


def test_djangos_own_receivers_need_no_thread(sqlite: Any, run: Run, threads: Counts) -> None:
    from django.contrib.auth.models import User, update_last_login

    async def main() -> None:
        user = await User.objects.acreate(username="Ada")
        user.last_login = None
        with connected(update_last_login):
            threads.clear()
            await ping.asend(User, user=user)
            submitted = [s for s in threads.submitted if "sqlite" not in s]
            assert [s for s in submitted if "shutdown" not in s] == []
        await user.arefresh_from_db()
        assert user.last_login is not None

    run(main)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("others", [[], [async_one]])
def test_a_sync_receiver_is_as_near_to_its_sender_as_with_stock(
    run: Run, robust: bool, others: list[Callable[..., Any]]
) -> None:
    frames: list[str] = []

    def looking(**named: Any) -> None:
        # What `warnings.warn(..., stacklevel=3)` would blame.
        frames.append(sys._getframe(2).f_code.co_name)

    def sending() -> None:
        sender_of(robust)[0](None)

    with connected(looking, *others):
        run(on_loop(sending))
        sending()
    assert frames == ["sending", "sending"]


def test_sync_receivers_keep_their_order_wherever_they_run(run: Run) -> None:
    """And neighbours in a thread are called in one hop."""
    from django.core.cache import close_caches

    order: list[tuple[str, int]] = []

    def noting(name: str) -> Callable[..., None]:
        def receiver(**named: Any) -> None:
            order.append((name, threading.get_ident()))

        return receiver

    async def main() -> None:
        order.clear()
        one, two, three = map(noting, ("one", "two", "three"))
        with connected(one, two, close_caches, three):
            answers = await ping.asend(None)
        assert [receiver for receiver, _ in answers] == [one, two, close_caches, three]
        assert [name for name, _ in order] == ["one", "two", "three"]
        assert threading.get_ident() not in {thread for _, thread in order}

    run(main)


def test_a_failing_sync_receiver_ends_the_sending(run: Run) -> None:
    called: list[str] = []

    async def later(**named: Any) -> None:
        called.append("async")

    def after(**named: Any) -> None:
        called.append("sync")

    async def main() -> None:
        with connected(failing, after, later), pytest.raises(Failure):
            await ping.asend(None)
        assert called == []

    run(main)


# Async receivers together


class Barrier:
    """Receivers that end only when all of them have begun."""

    def __init__(self, parties: int) -> None:
        self._barrier = asyncio.Barrier(parties)

    def receiver(self) -> Callable[..., Any]:
        async def receive(**named: Any) -> None:
            await self._barrier.wait()

        return receive


@pytest.mark.parametrize("how", ["send", "asend", "send_robust", "asend_robust"])
def test_async_receivers_run_concurrently(run: Run, how: str, like_task_group: bool) -> None:
    async def main() -> None:
        barrier = Barrier(3)
        method = getattr(ping, how)
        with connected(*(barrier.receiver() for _ in range(3))):
            async with asyncio.timeout(10):
                await (method(None) if how.startswith("a") else on_loop(method)(None))

    run(main)


class Sibling:
    """A receiver that waits until it is told to end, and notes how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.how = ""
        self.task: asyncio.Task[Any] | None = None

    async def receive(self, **named: Any) -> str:
        self.task = asyncio.current_task()
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        self.how = "whole"
        return "whole"


@pytest.mark.parametrize("how", ["send", "asend"])
def test_siblings_of_one_that_fails(run: Run, how: str, like_task_group: bool) -> None:
    """As with gather() they go on, and are awaited; as in a TaskGroup they are cancelled."""

    async def main() -> None:
        sibling = Sibling()

        async def fail(**named: Any) -> None:
            await sibling.begun.wait()
            if not like_task_group:
                task = asyncio.current_task()
                assert task is not None
                task.add_done_callback(lambda _: sibling.go.set())
            raise Failure

        send = ping.asend if how == "asend" else on_loop(ping.send)
        with connected(sibling.receive, fail), pytest.raises(Failure):
            await send(None)
        assert sibling.how == ("cancelled" if like_task_group else "whole")
        assert sibling.task is not None
        assert sibling.task.done()

    run(main)


def test_no_error_is_lost(
    run: Run, like_task_group: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of several that fail, the first is raised and the others logged, or all in a group."""

    async def main() -> None:
        barrier = asyncio.Barrier(2)

        async def one(**named: Any) -> None:
            await barrier.wait()
            raise Failure("one")

        async def two(**named: Any) -> None:
            await barrier.wait()
            raise ValueError("two")

        with connected(one, two):
            if like_task_group:
                with pytest.raises(ExceptionGroup) as group:
                    await ping.asend(None)
                assert {type(e) for e in group.value.exceptions} == {Failure, ValueError}
                return
            with pytest.raises((Failure, ValueError)) as raised:
                await ping.asend(None)
        (other,) = {"one", "two"} - {str(raised.value)}
        assert f"({other})" in caplog.text

    with caplog.at_level(logging.ERROR, "django.dispatch"):
        run(main)
    caplog.clear()


@pytest.mark.parametrize("how", ["send", "asend", "send_robust", "asend_robust"])
def test_a_cancellation_of_the_sender(
    run: Run, how: str, like_task_group: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends every receiver first; one that fails then does not replace it, and is logged."""

    async def main() -> None:
        siblings = [Sibling(), Sibling()]

        async def stubborn(**named: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise Failure("while it ended")

        method = getattr(ping, how)
        send = method if how.startswith("a") else on_loop(method)
        with connected(*(sibling.receive for sibling in siblings), stubborn):
            task = asyncio.create_task(send(None))
            for sibling in siblings:
                await sibling.begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert [sibling.how for sibling in siblings] == ["cancelled", "cancelled"]
        assert "while it ended" in caplog.text

    with caplog.at_level(logging.ERROR, "django.dispatch"):
        run(main)
    caplog.clear()


def test_a_second_cancellation_ends_a_receivers_cleanup(run: Run, like_task_group: bool) -> None:
    async def main() -> None:
        begun, cleaning = asyncio.Event(), asyncio.Event()

        async def slow_to_end(**named: Any) -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await asyncio.Event().wait()

        with connected(slow_to_end):
            task = asyncio.create_task(ping.asend(None))
            await begun.wait()
            task.cancel()
            await cleaning.wait()
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


def test_a_receiver_that_cancels_itself(run: Run, like_task_group: bool) -> None:
    """gather() raises that, a TaskGroup takes it for an end like any other."""

    async def give_up(**named: Any) -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        with connected(give_up, async_one):
            if like_task_group:
                assert await ping.asend(None) == [(give_up, None), (async_one, "async loop")]
                return
            with pytest.raises(asyncio.CancelledError):
                await ping.asend(None)

    run(main)


# Context variables


@pytest.mark.parametrize("situation", ["coroutine", "bridge", "thread"])
def test_context_variables_of_async_receivers(
    run: Run, situation: str, like_task_group: bool
) -> None:
    """Up to 6.0 they are a receiver's own; from 6.1 receivers share them with the sender."""

    def adding(name: str) -> Callable[..., Any]:
        async def receive(**named: Any) -> None:
            await asyncio.sleep(0)
            variable.set((*variable.get(), name))

        return receive

    async def main() -> None:
        token = variable.set(("sender",))
        try:
            if situation == "coroutine":
                await ping.asend(None)
            elif situation == "bridge":
                await on_loop(ping.send)(None)
            else:
                await sync_to_async(ping.send)(None)
            expected = ("sender", "one", "two") if like_task_group else ("sender",)
            assert variable.get() == expected
        finally:
            variable.reset(token)

    with connected(adding("one"), adding("two")):
        run(main)


def test_context_variables_of_sync_receivers(run: Run) -> None:
    """They are set for the sender, whether the receiver runs in a thread or on the loop."""

    def receiver(**named: Any) -> None:
        variable.set((*variable.get(), where()))

    async def main() -> None:
        token = variable.set(())
        with connected(receiver):
            await ping.asend(None)
            with override_settings(NUAGES={"SYNC_VIEWS": "loop"}):
                await ping.asend(None)
        assert variable.get() == ("thread", "loop")
        variable.reset(token)

    run(main)


def test_receivers_of_djangos_version(run: Run) -> None:
    """What decides which of the two it is, seen from outside."""
    import django

    assert (django.VERSION[:2] >= (6, 1)) is dispatch.LIKE_TASK_GROUP


def test_receivers_come_and_go(run: Run) -> None:
    """Weak ones too; `receiving()` leaves nothing behind."""

    async def main() -> None:
        assert await ping.asend(None) == []
        with receiving(ping, async_one, sender=Counts):
            assert await ping.asend(None) == []
            assert await ping.asend(Counts) == [(async_one, "async loop")]
        assert await on_loop(ping.send_robust)(Counts) == []

    run(main)
