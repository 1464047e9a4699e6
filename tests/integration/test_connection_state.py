"""What a project sets on `django.db.connection` holds for its request, and for no other."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models.signals import pre_save
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from nuages import on_loop
from nuages.asgi.handler import ASGIHandler
from nuages.db import aatomic, detached, hold_connection
from nuages.db.scopes.family import known_family
from nuages.db.transaction import request_connections
from tests.integration.asgi_client import Exchange, fetch
from tests.integration.conftest import Run
from tests.integration.scope_tools import Failure, receiving
from tests.library.models import Author

pytestmark = pytest.mark.every_database


def tenant() -> Any:
    """What was set on the connection that serves the calling code."""
    return getattr(connection, "tenant", None)


def tenant_after_query() -> Any:
    """The same of a connection at work."""
    Author.objects.count()
    return tenant()


async def coroutine_tenant() -> Any:
    await Author.objects.acount()
    return tenant()


# Who sets it


def sync_middleware(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        connection.tenant = request.headers["Tenant"]
        return get_response(request)

    return middleware


@on_loop
def loop_middleware(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        connection.tenant = request.headers["Tenant"]
        return get_response(request)

    return middleware


def async_middleware(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        connection.tenant = request.headers["Tenant"]
        return await get_response(request)

    return middleware


async_middleware.async_capable = True  # type: ignore[attr-defined]
async_middleware.sync_capable = False  # type: ignore[attr-defined]


class HookMiddleware:
    """Sets it in `process_view`, in the project's thread."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        connection.tenant = request.headers["Tenant"]


SETTERS = ["sync_middleware", "loop_middleware", "async_middleware", "HookMiddleware"]
MODES = {"thread": {}, "loop": {"SYNC_VIEWS": "loop"}, "request": {"CONNECTION_PER": "request"}}


# Who reads it


async def everywhere() -> dict[str, Any]:
    """What the code of a request finds, wherever it runs."""
    found: dict[str, Any] = {"coroutine": tenant(), "bridge": await on_loop(tenant)()}
    tasks = [coroutine_tenant(), on_loop(tenant_after_query)(), coroutine_tenant()]
    for number, value in enumerate(await asyncio.gather(*tasks)):
        found[f"gather {number}"] = value
    async with asyncio.TaskGroup() as group:
        spawned = [group.create_task(coroutine_tenant()) for _ in range(3)]
    found |= {f"group {number}": task.result() for number, task in enumerate(spawned)}
    found["thread"] = await sync_to_async(tenant_after_query)()
    found["other thread"] = await sync_to_async(tenant_after_query, thread_sensitive=False)()
    async with aatomic():
        found["transaction"] = tenant()
        found["task in it"] = await asyncio.create_task(coroutine_tenant())
        found["thread in it"] = await sync_to_async(tenant_after_query)()
        async with detached():
            # Of the context only: SQLite has one writer, and nothing need be asked.
            found["detached"] = await on_loop(tenant)()
    async with hold_connection():
        found["hold"] = await coroutine_tenant()

    author = Author(name=f"of {tenant()}")

    def note(sender: Any, instance: Author, **kwargs: Any) -> None:
        if instance is author:  # others save theirs meanwhile
            found["receiver"] = tenant()

    async def anote(sender: Any, instance: Author, **kwargs: Any) -> None:
        if instance is author:
            found["async receiver"] = tenant()

    with receiving(pre_save, note, Author), receiving(pre_save, anote, Author):
        await author.asave()
    return found


async def async_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse(await everywhere())


def sync_view(request: HttpRequest) -> JsonResponse:
    found = {"view": tenant(), "after a query": tenant_after_query()}
    with transaction.atomic():
        found["transaction"] = tenant()
    return JsonResponse(found)


@on_loop
def loop_view(request: HttpRequest) -> JsonResponse:
    return sync_view(request)


async def parts() -> AsyncIterator[str]:
    yield f"{tenant()},"
    yield f"{await coroutine_tenant()},"
    yield f"{await on_loop(tenant_after_query)()}"


def sync_parts() -> Iterator[str]:
    yield f"{tenant()},"
    yield f"{tenant_after_query()}"


async def stream_view(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(parts())


def sync_stream_view(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(sync_parts())


gates: dict[str, asyncio.Event] = {}


async def gate_view(request: HttpRequest) -> JsonResponse:
    """Look before, while, and after the others have set theirs."""
    before = tenant()
    entered.append(request.headers["Tenant"])
    await gates["open"].wait()
    found = await everywhere()
    return JsonResponse(found | {"before": before})


entered: list[str] = []


async def unset_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"found": tenant(), "bridge": await on_loop(tenant)()})


urlpatterns = [
    path("async", async_view),
    path("sync", sync_view),
    path("loop", loop_view),
    path("stream", stream_view),
    path("sync-stream", sync_stream_view),
    path("gate", gate_view),
    path("unset", unset_view),
]


def application(middleware: str, mode: str = "thread") -> Any:
    return override_settings(
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[f"{__name__}.{middleware}"] if middleware else [],
        NUAGES=MODES[mode],
    )


async def get(app: Any, url: str, name: str = "", **options: Any) -> Any:
    answer = await fetch(app, url, headers={"Tenant": name}, **options)
    assert answer.status == 200
    return answer.content.decode()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("middleware", SETTERS)
@pytest.mark.parametrize("url", ["/async", "/sync", "/loop"])
def test_what_middleware_sets_all_code_of_the_request_finds(
    database: str, run: Run, middleware: str, url: str, mode: str
) -> None:
    async def main() -> None:
        app = ASGIHandler()
        for name in ("blue", "green"):
            found = json.loads(await get(app, url, name))
            assert found == dict.fromkeys(found, name)
        assert tenant() is None

    with application(middleware, mode):
        run(main)


@pytest.mark.parametrize("middleware", SETTERS)
@pytest.mark.parametrize("url", ["/stream", "/sync-stream"])
def test_streaming_bodies_find_it(database: str, run: Run, middleware: str, url: str) -> None:
    async def main() -> None:
        app = ASGIHandler()
        assert set((await get(app, url, "blue")).split(",")) == {"blue"}
        assert set((await get(app, url, "green")).split(",")) == {"green"}

    with application(middleware):
        run(main)


@pytest.mark.every_loop
@pytest.mark.parametrize("middleware", SETTERS)
def test_concurrent_requests_never_see_anothers(database: str, run: Run, middleware: str) -> None:
    names = [f"tenant {number}" for number in range(64)]

    async def main() -> None:
        gates["open"] = asyncio.Event()
        entered.clear()
        app = ASGIHandler()
        requests = [Exchange(app, "/gate", headers={"Tenant": name}).start() for name in names]
        async with asyncio.timeout(50):
            while len(entered) < len(names):  # noqa: ASYNC110
                await asyncio.sleep(0)
            gates["open"].set()
            answers = [await request.end() for request in requests]
        for name, answer in zip(names, answers, strict=True):
            found = json.loads(answer.content)
            assert found == dict.fromkeys(found, name)

    with application(middleware):
        run(main)


@pytest.mark.parametrize("middleware", SETTERS)
def test_nothing_is_left_for_the_next_request(database: str, run: Run, middleware: str) -> None:
    """Also not in one task, as a server may have for the requests of one client."""

    async def main() -> None:
        with application(middleware):
            await get(ASGIHandler(), "/async", "blue")
        with application(""):
            app = ASGIHandler()
            assert json.loads(await get(app, "/unset")) == {"found": None, "bridge": None}
            # In this very task, not in one of its own.
            exchange = Exchange(app, "/unset", headers={})
            await exchange()
            assert json.loads(exchange.content) == {"found": None, "bridge": None}

    run(main)


# Contexts that are no request's


@pytest.mark.every_loop
def test_tasks_that_begin_on_their_own_share_nothing(database: str, run: Run) -> None:
    ready = 0

    async def work(name: str, everyone: asyncio.Event) -> None:
        nonlocal ready
        connection.tenant = name
        ready += 1
        if ready == 8:
            everyone.set()
        await everyone.wait()
        found = await everywhere()
        assert found == dict.fromkeys(found, name)

    async def main() -> None:
        everyone = asyncio.Event()
        await asyncio.gather(*(work(f"t{number}", everyone) for number in range(8)))
        assert tenant() is None

    run(main)


def test_a_task_inherits_what_its_starter_has_set_and_goes_on_sharing_it(
    database: str, run: Run
) -> None:
    """As with stock: they share the wrapper of the context that the task was started in."""

    async def main() -> None:
        connection.tenant = "first"
        changed, seen = asyncio.Event(), asyncio.Event()

        async def task() -> None:
            assert await coroutine_tenant() == "first"
            seen.set()
            await changed.wait()
            assert await coroutine_tenant() == "second"
            connection.tenant = "third"

        running = asyncio.create_task(task())
        await seen.wait()
        connection.tenant = "second"
        changed.set()
        await running
        assert await coroutine_tenant() == "third"
        other = asyncio.create_task(coroutine_tenant(), context=contextvars.Context())
        assert await other is None

    run(main)


def test_what_is_deleted_is_gone_everywhere(database: str, run: Run) -> None:
    async def main() -> None:
        connection.tenant = "blue"
        await asyncio.gather(coroutine_tenant(), coroutine_tenant())
        async with aatomic():
            del connection.tenant
            assert not hasattr(connection, "tenant")
        assert await asyncio.gather(coroutine_tenant(), coroutine_tenant()) == [None, None]
        with pytest.raises(AttributeError):
            del connection.tenant

    run(main)


def test_set_in_a_task_in_a_thread_and_in_a_block(database: str, run: Run) -> None:
    """Wherever it is set in the context, and on whatever wrapper: the others have it."""

    async def main() -> None:
        connections["default"]
        set_it = setter("by a thread")
        await sync_to_async(set_it)()
        found = await everywhere()
        assert found == dict.fromkeys(found, "by a thread")
        await asyncio.create_task(on_loop(setter("by a task"))())
        found = {"again": tenant(), "bridge": await on_loop(tenant_after_query)()}
        assert found == dict.fromkeys(found, "by a task")
        async with aatomic():
            connection.tenant = "in a block"
        assert await coroutine_tenant() == "in a block"
        async with request_connections():
            await on_loop(setter("in a request"))()
        assert await coroutine_tenant() == "in a request"

    run(main)


def setter(value: str) -> Callable[[], None]:
    def set_it() -> None:
        Author.objects.count()
        connection.tenant = value

    return set_it


def test_state_needs_no_wrapper_for_every_call(database: str, run: Run) -> None:
    """Wrappers of a context serve its next calls: as many as worked at once, not as calls."""
    made: set[int] = set()
    kept: list[Any] = []

    def note() -> None:
        Author.objects.count()
        wrapper = connections["default"]
        made.add(id(wrapper))
        kept.append(wrapper)  # so that no other gets its id

    async def main() -> None:
        for _ in range(10):
            await on_loop(note)()
            await sync_to_async(note)()
        assert len(made) == 1
        await asyncio.gather(*(on_loop(note)() for _ in range(3)))
        assert len(made) <= 3

    run(main)


def test_transactions_of_concurrent_tasks_stay_their_own(database: str, run: Run) -> None:
    """The state that is Django's own is of each wrapper: savepoints, hooks, rollbacks."""

    async def main() -> None:
        connection.tenant = "shared"
        hooks: list[str] = []
        inside, go = asyncio.Event(), asyncio.Event()

        async def block() -> None:
            async with aatomic():
                transaction.on_commit(lambda: hooks.append("committed"))
                assert connection.in_atomic_block
                connection.needs_rollback = True
                inside.set()
                await go.wait()
                assert connection.needs_rollback

        running = asyncio.create_task(block())
        await inside.wait()
        assert not connection.in_atomic_block
        assert not await on_loop(lambda: connection.in_atomic_block)()
        assert not await on_loop(lambda: connection.needs_rollback)()
        assert await coroutine_tenant() == "shared"
        go.set()
        await running
        assert hooks == []

    run(main)


# Replaced methods, as tools replace them


def count_queries(wrapper: Any, seen: list[str]) -> None:
    """Replace `cursor` and `chunked_cursor` of a wrapper, as the debug toolbar does."""
    cursor, chunked = wrapper.cursor, wrapper.chunked_cursor

    class Counting(CursorWrapper):
        def execute(self, sql: Any, params: Any = None) -> Any:
            seen.append(sql)
            return super().execute(sql, params)

    def wrap(made: Any) -> Any:
        return made if isinstance(made, Counting) else Counting(made.cursor, wrapper)

    wrapper.cursor = lambda: wrap(cursor())
    wrapper.chunked_cursor = lambda: wrap(chunked())


async def in_contexts(*coroutines: Any) -> None:
    """Run each in a context of its own, as requests are."""
    await asyncio.gather(
        *(asyncio.create_task(one, context=contextvars.Context()) for one in coroutines)
    )


def marked(mark: str) -> int:
    return Author.objects.extra(where=[f"'{mark}' = '{mark}'"]).count()


async def amarked(mark: str) -> None:
    queries = Author.objects.extra(where=[f"'{mark}' = '{mark}'"])
    await queries.acount()
    await asyncio.gather(*(queries.acount() for _ in range(3)))
    async with asyncio.TaskGroup() as group:
        group.create_task(on_loop(marked)(mark))
    await sync_to_async(marked)(mark)
    await sync_to_async(marked, thread_sensitive=False)(mark)
    async with aatomic():
        await asyncio.gather(*(queries.acount() for _ in range(2)))
        async with detached():
            await queries.acount()
    async with hold_connection():
        await queries.acount()
    async for _ in queries.aiterator(chunk_size=1):
        await queries.acount()


QUERIES = 1 + 3 + 1 + 1 + 1 + 2 + 1 + 1 + 1 + 2
"""How many `amarked()` sends, where there are two authors."""


@pytest.mark.every_loop
@pytest.mark.parametrize("place", ["coroutine", "bridge", "thread"])
def test_replaced_cursors_see_every_query_of_their_context(
    database: str, run: Run, place: str
) -> None:
    async def request(mark: str) -> None:
        seen: list[str] = []

        def replace() -> None:
            count_queries(connections["default"], seen)

        if place == "coroutine":
            replace()
        elif place == "bridge":
            await on_loop(replace)()
        else:
            await sync_to_async(replace)()
        await amarked(mark)
        assert [mark in sql for sql in seen if "library_author" in sql] == [True] * QUERIES

    async def main() -> None:
        for name in ("a", "b"):
            await Author.objects.acreate(name=name)
        await in_contexts(*(request(f"mark{number}") for number in range(4)))
        seen: list[str] = []
        await amarked("of nobody")
        assert seen == []

    run(main)


def test_a_replaced_cursor_goes_where_its_user_is(database: str, run: Run) -> None:
    """The replacement kept one wrapper; what is asked for in a block is of the block."""

    async def main() -> None:
        seen: list[str] = []
        await on_loop(lambda: count_queries(connections["default"], seen))()
        async with aatomic():
            await Author.objects.acreate(name="x")
            assert await Author.objects.acount() == 1
            await asyncio.gather(*(Author.objects.acreate(name=f"x{i}") for i in range(3)))
            async with detached():
                assert await Author.objects.acount() == 0
            assert await sync_to_async(Author.objects.count)() == 4
        assert await Author.objects.acount() == 4
        assert sum("INSERT" in sql for sql in seen) == 4

    run(main)


def test_a_wrapper_that_was_kept_serves_whoever_uses_it(database: str, run: Run) -> None:
    """`conn = connections[...]` kept over calls, as in stock: never another's session."""

    async def main() -> None:
        kept: Any = await on_loop(lambda: connections["default"])()
        plain: Any = connections["default"]

        def write(wrapper: Any, name: str) -> None:
            with wrapper.cursor() as cursor:
                cursor.execute("INSERT INTO library_author (name) VALUES (%s)", [name])

        in_block, go = asyncio.Event(), asyncio.Event()

        async def block() -> None:
            async with aatomic():
                await on_loop(write)(kept, "kept")
                await on_loop(write)(plain, "plain")
                in_block.set()
                await go.wait()
                await on_loop(lambda: kept.set_rollback(True))()

        running = asyncio.create_task(block())
        await in_block.wait()
        # They are at work for the task's block: this code's own calls reach its own session.
        assert not await on_loop(lambda: kept.get_autocommit() is False)()
        await on_loop(lambda: kept.close())()
        await on_loop(lambda: plain.close())()
        assert await Author.objects.acount() == 0
        go.set()
        await running
        await sync_to_async(write)(kept, "by a thread")
        assert [a.name for a in await Author.objects.alist()] == ["by a thread"]

    run(main)


def test_replacements_are_taken_back(database: str, run: Run) -> None:
    async def main() -> None:
        seen: list[str] = []
        count_queries(connection, seen)
        await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
        assert len(seen) >= 3
        del connection.cursor, connection.chunked_cursor
        seen.clear()
        await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
        assert seen == []

    run(main)


def test_execute_wrappers_appended_by_hand_hold_for_the_context(database: str, run: Run) -> None:
    """`connection.execute_wrappers.append(...)`, and none of another context's."""

    async def work(mark: str) -> None:
        seen: list[str] = []

        def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            seen.append(sql)
            return execute(sql, params, many, context)

        connection.execute_wrappers.append(note)
        with connection.execute_wrapper(note):
            await Author.objects.acount()
        assert len(seen) == 2
        seen.clear()
        await amarked(mark)
        assert [mark in sql for sql in seen if "library_author" in sql] == [True] * QUERIES

    async def main() -> None:
        for name in ("a", "b"):
            await Author.objects.acreate(name=name)
        await in_contexts(*(work(f"mark{number}") for number in range(3)))
        assert connection.execute_wrappers == []

    run(main)


def test_wrappers_of_a_context_end_with_it(database: str, run: Run) -> None:
    async def work() -> list[weakref.ref[Any]]:
        connection.tenant = "x"
        found = [weakref.ref(connections["default"])]
        found.append(weakref.ref(await on_loop(lambda: connections["default"])()))
        await Author.objects.acount()
        return found

    async def main() -> None:
        found = await asyncio.create_task(work(), context=contextvars.Context())
        await asyncio.sleep(0)  # the loop itself keeps the task until its next step
        gc.collect()
        assert [one() for one in found] == [None, None]

    run(main)


def test_nothing_of_djangos_or_ours_is_shared(database: str, run: Run) -> None:
    """What sets an attribute while it works sets its own wrapper's; `OWN` knows them all."""

    async def main() -> None:
        await everywhere()
        with pytest.raises(Failure):
            async with aatomic():
                connection.needs_rollback = False
                with pytest.raises(Failure):
                    async with aatomic():
                        raise Failure
                await on_loop(lambda: connection.check_constraints())()
                raise Failure

        def by_hand() -> None:
            with transaction.atomic():
                sid = connection.savepoint()
                transaction.savepoint_rollback(sid)
            transaction.set_autocommit(False)
            Author.objects.count()
            transaction.rollback()
            transaction.set_autocommit(True)
            with CaptureQueriesContext(connection), connection.temporary_connection():
                pass
            with connection.constraint_checks_disabled():
                pass
            connection.close()

        await on_loop(by_hand)()
        await sync_to_async(by_hand)()
        family = known_family("default")
        assert family is not None
        assert set(family.state) == {"_execute_wrappers"}

    run(main)


@pytest.mark.parametrize("place", ["coroutine", "bridge", "thread"])
def test_a_kept_wrapper_tells_of_the_session_at_hand(database: str, run: Run, place: str) -> None:
    """As the debug toolbar asks `connection.connection` of the wrapper that it has patched."""

    async def main() -> None:
        kept: list[Any] = []

        def patch() -> None:
            wrapper = connections["default"]
            cursor = wrapper.cursor
            wrapper.cursor = lambda: cursor()  # type: ignore[method-assign]
            kept.append(wrapper)

        if place == "coroutine":
            patch()
        elif place == "bridge":
            await on_loop(patch)()
        else:
            await sync_to_async(patch)()

        def look() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                here = connections["default"].connection
                assert here is not None
                assert kept[0].connection is here
                assert kept[0].in_atomic_block == connection.in_atomic_block

        await asyncio.gather(on_loop(look)(), on_loop(look)(), sync_to_async(look)())
        async with aatomic():
            await on_loop(look)()
            await sync_to_async(look)()
            async with detached():
                await on_loop(look)()
        await on_loop(look)()

    run(main)
