"""Event streams without a server: the source's life, heartbeats, stops and errors.

Nothing here looks at a clock: a heartbeat of a millisecond is read as often as it is wanted.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from django.http import HttpRequest
from django.middleware.gzip import GZipMiddleware
from django.middleware.http import ConditionalGetMiddleware
from django.test import AsyncRequestFactory, RequestFactory

from nuages import stopping
from nuages.bridge import tasks
from nuages.exceptions import EventStreamNeedsASGI
from nuages.http import EventStream, last_event_id

OPENING = b":\n\n"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert not tasks._spawned, "background work was left behind"
    assert not any(state.callbacks for state in stopping._states.values()), "a stream was left"


def asks(**headers: str) -> HttpRequest:
    return AsyncRequestFactory().get("/events/", headers=headers)


async def others() -> set[asyncio.Task[Any]]:
    """The tasks that are there beside the test's own."""
    return asyncio.all_tasks() - {asyncio.current_task()}


class Source:
    """Yields what it is given and notes what becomes of it."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.notes: list[str] = []
        self.ids: list[str | None] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, last: str | None) -> AsyncIterator[Any]:
        self.ids.append(last)
        self.notes.append("begun")
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
                self.notes.append("went on")
            self.notes.append("exhausted")
        except BaseException as error:
            self.notes.append(type(error).__name__)
            raise
        finally:
            self.notes.append("finally")
            await self.may_end.wait()
            await asyncio.sleep(0)
            self.notes.append("closed")

    def says(self, *items: Any) -> Source:
        for item in items:
            self.items.put_nowait(item)
        return self


async def test_it_opens_at_once_and_then_asks_the_source() -> None:
    source = Source().says("one", {"n": 2}, None)
    stream = aiter(EventStream(source, asks()))
    assert await anext(stream) == OPENING
    assert source.notes == []
    assert await anext(stream) == b"data: one\n\n"
    assert await anext(stream) == b'data: {"n": 2}\n\n'
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert source.notes == ["begun", "went on", "went on", "exhausted", "finally", "closed"]
    assert not await others()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await stream.aclose()


async def test_retry_comes_first() -> None:
    stream = aiter(EventStream(Source(), asks(), retry=2500))
    assert await anext(stream) == b"retry: 2500\n\n"
    await stream.aclose()


async def test_the_source_goes_on_when_its_event_was_sent() -> None:
    source = Source().says(1, 2)
    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    await anext(stream)
    for _ in range(10):
        await asyncio.sleep(0)
    assert source.notes == ["begun"]
    await anext(stream)
    assert source.notes == ["begun", "went on"]
    await stream.aclose()


async def test_heartbeats_while_the_source_is_silent_lose_nothing() -> None:
    source = Source()
    stream = aiter(EventStream(source, asks(), heartbeat=0.001))
    for _ in range(4):
        assert await anext(stream) == OPENING
    source.says("kept")
    received = [await anext(stream)]
    while received[-1] == OPENING:
        received.append(await anext(stream))
    assert received[-1] == b"data: kept\n\n"
    assert source.notes == ["begun"]
    await stream.aclose()
    assert source.notes[1:] == ["GeneratorExit", "finally", "closed"]


async def test_a_heartbeat_is_for_a_reader_that_waited_long() -> None:
    """The timer runs out when it does; what it finds then is arranged here."""
    source = Source().says("one", "two")
    stream = aiter(EventStream(source, asks(), heartbeat=1000))
    relay = stream._relay
    await anext(stream)
    await anext(stream)

    relay._last -= 2000  # long ago, but it is the reader who is busy
    relay._tick()
    assert await anext(stream) == b"data: two\n\n"

    reading = asyncio.create_task(anext(stream))
    while relay._waiter is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    relay._tick()  # the last event was just now
    await asyncio.sleep(0)
    assert not reading.done()
    relay._last -= 2000
    relay._tick()
    assert await reading == OPENING
    await stream.aclose()


async def test_without_heartbeat_no_timer_runs() -> None:
    stream = aiter(EventStream(Source().says("x"), asks(), heartbeat=None))
    await anext(stream)
    await anext(stream)
    assert stream._relay._timer is None
    await stream.aclose()


async def test_a_stream_is_one_task() -> None:
    streams = [aiter(EventStream(Source().says("x", "y"), asks())) for _ in range(50)]
    for stream in streams:
        await anext(stream)
    assert not await others()
    for _ in "xy":
        for stream in streams:
            await anext(stream)
        assert len(await others()) == 50
    for stream in streams:
        await stream.aclose()
    assert not await others()


async def test_closed_while_the_source_waits_it_is_cancelled_there() -> None:
    source = Source()
    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    reading = asyncio.create_task(anext(stream))
    while not source.notes:  # noqa: ASYNC110
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert source.notes == ["begun"]
    await stream.aclose()
    assert source.notes == ["begun", "CancelledError", "finally", "closed"]
    assert not await others()


async def test_closing_waits_for_the_sources_finally_even_when_cancelled() -> None:
    source = Source().says("x")
    source.may_end.clear()
    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    await anext(stream)
    closing = asyncio.create_task(stream.aclose())
    while "finally" not in source.notes:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not closing.done()
    source.may_end.set()
    await closing
    assert source.notes == ["begun", "GeneratorExit", "finally", "closed"]


async def test_a_finally_that_hangs_gets_the_second_cancellation() -> None:
    source = Source().says("x")
    source.may_end.clear()
    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    await anext(stream)
    closing = asyncio.create_task(stream.aclose())
    while "finally" not in source.notes:  # noqa: ASYNC110
        await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert source.notes == ["begun", "GeneratorExit", "finally"]
    assert not await others()


async def test_a_source_that_swallows_its_cancellation_ends_too() -> None:
    notes = []

    async def source(last: str | None) -> AsyncIterator[str]:
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    notes.append("swallowed")
                yield "still here"
        finally:
            notes.append("finally")

    stream = aiter(EventStream(source, asks(), heartbeat=0.001))
    await anext(stream)
    assert await anext(stream) == OPENING
    await stream.aclose()
    assert notes == ["swallowed", "finally"]


async def test_never_read_nothing_is_begun() -> None:
    source = Source()
    generator = source(None)
    await aiter(EventStream(generator)).aclose()
    assert source.notes == []
    with pytest.raises(StopAsyncIteration):
        await anext(generator)


class Closable:
    """An iterator that is no generator: a subscription, say, open from the beginning."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)
        self.closed = 0

    def __aiter__(self) -> Closable:
        return self

    async def __anext__(self) -> Any:
        if not self.items:
            raise StopAsyncIteration
        return self.items.pop(0)

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("reads", range(5))
async def test_an_iterator_is_closed_exactly_once(reads: int) -> None:
    source = Closable("a", "b")
    stream = aiter(EventStream(source))
    for _ in range(reads):
        await anext(stream, None)
    await stream.aclose()
    await stream.aclose()
    assert source.closed == 1


async def test_an_iterable_without_aclose() -> None:
    class Numbers:
        async def __aiter__(self) -> AsyncIterator[int]:
            for number in range(2):
                yield number

    assert [chunk async for chunk in EventStream(Numbers())] == [
        OPENING,
        b"data: 0\n\n",
        b"data: 1\n\n",
    ]


async def test_sources_that_are_functions() -> None:
    async def generator(last: str | None) -> AsyncIterator[str]:
        yield f"after {last}"

    async def coroutine(last: str | None) -> AsyncIterator[str]:
        await asyncio.sleep(0)
        return generator(last)

    def plain(last: str | None) -> AsyncIterator[str]:
        return generator(last)

    class Callable:
        async def __call__(self, last: str | None) -> AsyncIterator[str]:
            return generator(last)

    async def named(topic: str, last: str | None) -> AsyncIterator[str]:
        yield f"{topic} after {last}"

    request = asks(**{"Last-Event-ID": "7"})
    for source in (generator, coroutine, plain, Callable()):
        chunks = [chunk async for chunk in EventStream(source, request)]
        assert chunks == [OPENING, b"data: after 7\n\n"]
    stream = EventStream(functools.partial(named, "news"), asks())
    assert [chunk async for chunk in stream][1:] == [b"data: news after None\n\n"]


@pytest.mark.parametrize("value", ["17", "größer als 3", "日本", ""])
async def test_the_last_event_id_reaches_the_source(value: str) -> None:
    sent = value.encode().decode("latin-1")  # as an ASGI server hands it on
    request = asks(**{"Last-Event-ID": sent})
    source = Source().says(None)
    stream = EventStream(source, request)
    assert stream.last_event_id == last_event_id(request) == (value or None)
    assert [chunk async for chunk in stream] == [OPENING]
    assert source.ids == [value or None]


def test_a_last_event_id_that_is_no_utf_8() -> None:
    assert last_event_id(asks(**{"Last-Event-ID": "\xff"})) == "\ufffd"
    assert last_event_id(asks()) is None


async def test_an_error_in_the_source_ends_the_stream_with_it() -> None:
    source = Source().says("x", ZeroDivisionError("in the source"))
    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    await anext(stream)
    with pytest.raises(ZeroDivisionError, match="in the source"):
        await anext(stream)
    assert source.notes[-3:] == ["ZeroDivisionError", "finally", "closed"]
    await stream.aclose()
    assert not await others()


async def test_what_cannot_be_sent_is_an_error_and_closes_the_source() -> None:
    source = Source().says(b"\xff")
    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    with pytest.raises(ValueError, match="UTF-8"):
        await anext(stream)
    assert source.notes == ["begun", "GeneratorExit", "finally", "closed"]


async def test_an_error_while_the_source_is_closed_is_raised_once() -> None:
    async def source(last: str | None) -> AsyncIterator[str]:
        try:
            yield "x"
        finally:
            raise OSError("the broker is gone")

    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    await anext(stream)
    with pytest.raises(OSError, match="the broker is gone"):
        await stream.aclose()
    await stream.aclose()


async def test_a_source_that_is_cancelled_from_within_does_not_end_as_if_complete() -> None:
    async def source(last: str | None) -> AsyncIterator[str]:
        yield "x"
        raise asyncio.CancelledError

    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    await anext(stream)
    with pytest.raises(asyncio.CancelledError, match="was cancelled"):
        await anext(stream)


async def test_the_servers_stop_ends_waiting_and_busy_streams() -> None:
    silent, busy = Source(), Source().says(*range(10))
    streams = [aiter(EventStream(source, asks())) for source in (silent, busy)]
    for stream in streams:
        await anext(stream)
    await anext(streams[1])
    reading = asyncio.create_task(anext(streams[0], "ended"))
    while not silent.notes:  # noqa: ASYNC110
        await asyncio.sleep(0)
    stopping.announce_stop(asyncio.get_running_loop())
    assert await reading == "ended"
    assert silent.notes == ["begun", "CancelledError", "finally", "closed"]
    assert await anext(streams[1], "ended") == "ended"
    assert busy.notes[-2:] == ["finally", "closed"]
    assert not await others()

    late = Source().says("never sent")
    assert [chunk async for chunk in EventStream(late, asks())] == [OPENING]
    assert not late.notes
    assert not await others()


async def test_a_source_that_the_servers_stop_leaves_unopened_is_closed() -> None:
    class Events:
        closed = False

        def __aiter__(self) -> Events:
            return self

        async def __anext__(self) -> str:
            return "never sent"

        async def aclose(self) -> None:
            self.closed = True

    events = Events()
    stopping.announce_stop(asyncio.get_running_loop())
    assert [chunk async for chunk in EventStream(events)] == [OPENING]
    assert events.closed


async def test_dropped_without_being_closed_it_is_closed() -> None:
    source = Source().says("x")
    async for chunk in EventStream(source, asks()):
        if chunk != OPENING:
            break
    gc.collect()
    while "closed" not in source.notes or tasks._spawned:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert source.notes == ["begun", "GeneratorExit", "finally", "closed"]
    assert not await others()


async def test_every_step_of_the_source_runs_in_one_task_with_the_readers_context() -> None:
    variable = contextvars.ContextVar[str]("variable")
    tasks = set()

    async def source(last: str | None) -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(60):
                for _ in range(3):
                    tasks.add(asyncio.current_task())
                    yield variable.get()
                    variable.set("changed")
        finally:
            tasks.add(asyncio.current_task())

    variable.set("the reader's")
    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    assert await anext(stream) == b"data: the reader's\n\n"
    assert await anext(stream) == b"data: changed\n\n"
    assert variable.get() == "the reader's"
    await stream.aclose()
    assert len(tasks) == 1


# The response


async def test_headers() -> None:
    response = EventStream(Source(), asks(), headers={"X-Topic": "news"})
    assert dict(response.items()) == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-store, no-transform",
        "X-Accel-Buffering": "no",
        "X-Topic": "news",
    }
    assert response.streaming
    assert response.is_async


async def test_head_does_not_ask_the_source() -> None:
    source = Source()
    request = AsyncRequestFactory().head("/events/")
    assert [chunk async for chunk in EventStream(source, request)] == []
    assert source.notes == []


async def test_gzip_and_conditional_get_leave_it_alone() -> None:
    request = asks(**{"Accept-Encoding": "gzip", "If-None-Match": "*"})
    response = EventStream(Source().says("x", None), request)
    for middleware in (GZipMiddleware, ConditionalGetMiddleware):
        assert middleware(lambda request: response).process_response(request, response) is response
    assert "Content-Encoding" not in dict(response.items())
    assert "Vary" not in response
    assert [chunk async for chunk in response] == [OPENING, b"data: x\n\n"]


async def test_a_middleware_that_wraps_the_content_is_closed_with_it() -> None:
    notes = []

    async def shout(content: Any) -> AsyncIterator[Any]:
        try:
            async for chunk in content:
                yield chunk.upper().decode()
        finally:
            notes.append("wrapper closed")

    source = Source().says("x")
    response = EventStream(source, asks())
    response.streaming_content = shout(response.streaming_content)
    stream = aiter(response)
    assert [await anext(stream), await anext(stream)] == [OPENING, b"DATA: X\n\n"]
    await stream.aclose()
    assert notes == ["wrapper closed"]
    assert source.notes == ["begun", "GeneratorExit", "finally", "closed"]


def test_wsgi_gets_a_clear_error() -> None:
    async def source(last: str | None) -> AsyncIterator[str]:
        yield "x"

    response = EventStream(source, RequestFactory().get("/"))
    with pytest.raises(EventStreamNeedsASGI, match="Serve the project through its ASGI"):
        iter(response)
    response.close()


@pytest.mark.parametrize("heartbeat", [0, -1, float("nan")])
def test_a_wrong_heartbeat(heartbeat: float) -> None:
    with pytest.raises(ValueError, match="above 0, or None"):
        EventStream(Source, asks(), heartbeat=heartbeat)


def test_a_wrong_retry() -> None:
    with pytest.raises(ValueError, match="milliseconds from 0"):
        EventStream(Closable(), retry=-1)


def test_wrong_sources() -> None:
    async def coroutine(last: str | None) -> None:
        """Never run."""

    async def without() -> AsyncIterator[str]:
        yield ""

    with pytest.raises(TypeError, match=r"EventStream\(source, request\)"):
        EventStream(coroutine)
    with pytest.raises(TypeError, match="Pass the function itself"):
        EventStream(coroutine(None), asks())
    with pytest.raises(TypeError, match="Make it an async generator"):
        EventStream(["a", "list"], asks())
    with pytest.raises(TypeError, match=r"async def without\(last_event_id\)"):
        EventStream(without, asks())


async def test_a_function_that_returns_nothing_to_iterate() -> None:
    async def source(last: str | None) -> list[str]:
        return ["x"]

    stream = aiter(EventStream(source, asks()))
    await anext(stream)
    with pytest.raises(TypeError, match=r"`async for` cannot iterate: \['x'\]"):
        await anext(stream)
