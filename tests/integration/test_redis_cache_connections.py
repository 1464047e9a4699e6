"""The connections of the Redis cache: how many, whose answer is whose, and when they end."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from nuages import on_loop
from nuages.cache.loops import _clients, open_clients
from nuages.exceptions import CachePoolTimeout
from nuages.test import FaultProxy
from tests import services
from tests.integration.cache_tools import ours, prefix, the_pool
from tests.integration.conftest import Counts, Run
from tests.integration.pool_tools import Heartbeat, cancelled, ran_in_a_context
from tests.integration.sweep_tools import Cut, settled
from tests.services import free_port

pytestmark = pytest.mark.both_loops


def proxy_for(url: str) -> FaultProxy:
    parts = urlsplit(url)
    return FaultProxy(str(parts.hostname), int(parts.port or 6379))


async def until_waiting(count: int) -> None:
    """Wait until `count` tasks wait for a connection."""
    while the_pool().stats()["waiting"] != count:  # noqa: ASYNC110
        await asyncio.sleep(0)


def test_a_thousand_at_once_and_no_thread(valkey_url: str, run: Run, threads: Counts) -> None:
    # All of them begin at once, which in asyncio's debug mode keeps the loop for seconds.
    cache = ours(valkey_url, max_connections=20, socket_connect_timeout=30)

    async def use(number: int) -> None:
        if number % 4:
            assert await cache.aget(f"k{number % 4}") == number % 4
        else:
            await cache.aset(f"n{number}", number)
            assert await cache.aget(f"n{number}") == number

    @on_loop
    def use_sync(number: int) -> None:
        assert cache.get(f"k{number % 4}") == number % 4

    async def main() -> None:
        await cache.aset_many({f"k{number}": number for number in range(4)})
        await asyncio.gather(*((use, use_sync)[number % 3 == 0](number) for number in range(1000)))
        assert the_pool().stats() == {"idle": 20, "used": 0, "waiting": 0}

    run(main)
    threads.assert_none()


def test_a_connection_keeps_nothing_of_the_context_it_was_opened_in(
    valkey_url: str, run: Run
) -> None:
    """It outlives the request that opened it."""
    cache = ours(valkey_url)

    async def main() -> None:
        is_kept = await ran_in_a_context(lambda: cache.aget("a"))
        await asyncio.sleep(0)  # the end of that task is what woke this one, and still at hand
        assert the_pool().stats() == {"idle": 1, "used": 0, "waiting": 0}
        assert not is_kept()

    run(main)


def test_who_waits_too_long_is_told(valkey_url: str, run: Run) -> None:
    async def main() -> None:
        async with proxy_for(valkey_url) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}"
            cache = ours(url, max_connections=1, pool_timeout=0.05)
            await cache.aget("a")
            proxy.stall("to_server", new=False)
            busy = asyncio.create_task(cache.aget("a"))
            await until_used(1)
            with pytest.raises(CachePoolTimeout, match="all 1 are in use"):
                await cache.aget("a")
            proxy.resume()
            assert await busy is None
            assert the_pool().stats() == {"idle": 1, "used": 0, "waiting": 0}
            assert await cache.aget("a") is None
            await cache.aclose()

    run(main)


async def until_used(count: int) -> None:
    while not open_clients() or the_pool().stats()["used"] != count:  # noqa: ASYNC110
        await asyncio.sleep(0)


OPERATIONS = {
    "get": lambda cache: cache.aget("other"),
    "set": lambda cache: cache.aset("other", "x"),
    "get_many": lambda cache: cache.aget_many(["other", "another"]),
    "set_many": lambda cache: cache.aset_many({"other": "x", "another": "y"}),
    "incr": lambda cache: cache.aincr("number"),
    "bridge": lambda cache: on_loop(cache.get)("other"),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_nobody_gets_the_answer_of_a_cancelled_command(
    valkey_url: str, run: Run, operation: Any
) -> None:
    """CVE-2023-28858: it is in flight when it is cancelled, and its answer arrives afterwards."""

    async def main() -> None:
        async with proxy_for(valkey_url) as proxy:
            cache = ours(f"redis://127.0.0.1:{proxy.port}", max_connections=1)
            await cache.aset_many({"a": "mine", "other": "not mine", "number": 5})
            assert the_pool().stats()["idle"] == 1
            proxy.stall("to_server", new=False)
            task = asyncio.create_task(operation(cache))
            await until_used(1)
            await proxy.until_kept()
            waiting = asyncio.create_task(cache.aget("a"))
            await until_waiting(1)
            await cancelled(task)
            proxy.resume()
            # The same place in the pool, with a connection that has nothing to say.
            assert await waiting == "mine"
            for _ in range(3):
                assert await cache.aget("a") == "mine"
            assert the_pool().stats() == {"idle": 1, "used": 0, "waiting": 0}
            await cache.aclose()

    run(main)


def test_cancellations_at_any_moment_lose_no_connection(valkey_url: str, run: Run) -> None:
    """Tasks are cancelled after a random number of the loop's turns: in line, connecting, in
    flight, giving back. Every answer is the one that belongs to its key."""
    cache = ours(valkey_url, max_connections=3)
    choice = random.Random(4)

    async def use(number: int) -> None:
        key = f"k{number}"
        for _ in range(3):
            assert await cache.aget(key) == number
            assert await cache.aget_many([key]) == {key: number}

    async def main() -> None:
        await cache.aset_many({f"k{number}": number for number in range(30)})
        for _ in range(6):
            tasks = [asyncio.create_task(use(number)) for number in range(30)]
            for task in tasks[::2]:
                asyncio.get_running_loop().call_later(choice.random() / 50, task.cancel)
            for found in await asyncio.gather(*tasks, return_exceptions=True):
                assert found is None or isinstance(found, asyncio.CancelledError), found
            stats = the_pool().stats()
            assert (stats["used"], stats["waiting"]) == (0, 0)
            assert stats["idle"] <= 3
        assert await cache.aget("k7") == 7

    run(main)


def test_a_cancellation_that_comes_with_the_answer_is_not_lost(valkey_url: str, run: Run) -> None:
    """Before Python 3.12 `asyncio.wait_for()`, which redis-py sends by, drops it."""

    async def main() -> None:
        cache = ours(valkey_url)
        for name, arguments in (("aget", ()), ("aset", (1,)), ("aadd", (1,)), ("ahas_key", ())):
            for point in itertools.count(1):
                cut = Cut(getattr(cache, name)("key", *arguments), range(point, point + 1), "late")
                task = asyncio.create_task(cut.run())
                await asyncio.wait([task])
                if not cut.cancelled:
                    break
                assert task.cancelled(), f"{name} at {point}: {task}"
            await task
        await settled()
        assert the_pool().stats()["used"] == 0

    run(main)


def test_the_loop_goes_on_while_a_command_waits(
    valkey_url: str, run: Run, threads: Counts
) -> None:
    async def main() -> None:
        async with proxy_for(valkey_url) as proxy:
            cache = ours(f"redis://127.0.0.1:{proxy.port}", max_connections=1)
            await cache.aset("a", 1)
            proxy.stall("to_server", new=False)
            task = asyncio.create_task(on_loop(cache.get)("a"))
            async with Heartbeat() as heart:
                await heart.more(200)
            assert not task.done()
            proxy.resume()
            assert await task == 1
            await cache.aclose()

    threads.clear()
    run(main)
    threads.assert_none()


@pytest.fixture
def restartable() -> Iterator[Any]:
    """A Valkey that can be stopped, and started again on the same port; gives (url, restart)."""
    with ExitStack() as stack:
        port = free_port()
        current = stack.enter_context(ExitStack())

        def start() -> None:
            current.enter_context(services.valkey_server(port=port))

        start()
        yield f"redis://127.0.0.1:{port}", current.close, start


def test_a_restarted_server_is_found_again(restartable: Any, run: Run) -> None:
    """Every idle connection is dead: none of the next commands notices, incr() neither."""
    url, stop, start = restartable
    cache = ours(url, max_connections=5)

    async def main() -> None:
        await asyncio.gather(*(cache.aset(f"k{number}", 1) for number in range(20)))
        assert the_pool().stats()["idle"] == 5
        await asyncio.to_thread(stop)
        await asyncio.to_thread(start)
        assert await asyncio.gather(*(cache.aget(f"k{number}") for number in range(20))) == (
            [None] * 20
        )
        await cache.aset("n", 1)
        await asyncio.to_thread(stop)
        await asyncio.to_thread(start)
        with pytest.raises(ValueError, match="not found"):
            await cache.aincr("n")
        assert await cache.aadd("n", 1) is True
        await asyncio.to_thread(stop)
        with pytest.raises(redis.ConnectionError):
            await cache.aget("n")
        stats = the_pool().stats()
        assert (stats["used"], stats["waiting"]) == (0, 0)
        await asyncio.to_thread(start)
        assert await cache.aget("n") is None
        await asyncio.to_thread(stop)

    run(main)


def test_what_may_be_sent_twice_is_sent_again(valkey_url: str, run: Run) -> None:
    """The connection is cut while the answer is awaited: get() asks again, incr() does not."""

    async def main() -> None:
        async with proxy_for(valkey_url) as proxy:
            cache = ours(f"redis://127.0.0.1:{proxy.port}", max_connections=1)
            await cache.aset_many({"a": "text", "n": 1})
            for operation, expected in ((cache.aget("a"), "text"), (cache.aincr("n"), None)):
                proxy.stall("to_server", new=False)
                task = asyncio.create_task(operation)
                await until_used(1)
                await proxy.until_kept()
                proxy.cut()
                if expected is None:
                    with pytest.raises(redis.ConnectionError):
                        await task
                else:
                    assert await task == expected
                proxy.resume()
            assert await cache.aget("n") in {1, 2}
            await cache.aclose()

    run(main)


def test_connections_end_with_their_loop(valkey_url: str, run: Run) -> None:
    name = prefix()
    cache = ours(valkey_url, client_name=name)

    def connected() -> int:
        with redis.Redis.from_url(valkey_url) as server:
            clients: Any = server.client_list()
            return sum(client["name"] == name for client in clients)

    async def main() -> None:
        await asyncio.gather(*(cache.aget("a") for _ in range(30)))
        assert connected() == len(open_clients()) * the_pool().stats()["idle"] > 0

    for _ in range(2):
        run(main)  # which looks for what is left behind
    while connected():
        pass  # the server is about to notice
    assert [loop for loop in _clients if not loop.is_closed()] == []


def test_a_forked_process_has_connections_of_its_own(valkey_url: str, run: Run) -> None:
    cache = ours(valkey_url)
    cache.set("a", "mine")

    async def main() -> None:
        assert await cache.aget("a") == "mine"
        with warnings.catch_warnings():
            # Python 3.12 warns of threads, which a server has not when it forks.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            # The parent's loop is none of the child's business; the child has none yet.
            code = 1
            try:
                asyncio._set_running_loop(None)
                asyncio.set_event_loop(None)
                assert not _clients
                assert cache.get("a") == "mine"
                code = 0
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, process, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        for _ in range(3):
            assert await cache.aget("a") == "mine"

    run(main)
