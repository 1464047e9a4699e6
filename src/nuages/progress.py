"""Progress of a long loop: a bar on a terminal, a plain line now and then elsewhere.

A thin layer on tqdm, for management commands and for long work inside them. tqdm draws the bar;
where it is not installed, or the output is no terminal, plain lines say the same.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Generic, Protocol, TextIO, TypeVar, cast

from django.core.management.base import OutputWrapper

T = TypeVar("T")

INTERVAL = 10.0
"""Seconds between two plain lines."""


class _Shown(Protocol):
    def advance(self, count: float) -> None: ...
    def write(self, text: str) -> None: ...
    def close(self) -> None: ...


class Progress(Generic[T]):
    """A display of how far a loop is, its rate and the time left.

    Around a loop, sync or async, or as a context manager with `advance()`::

        for book in Progress(books, description="Books", output=self.stderr): ...
        async for book in Progress(Book.objects.aiterator(), total=count, unit="books"): ...
        with Progress(total=1_000_000, unit="rows", start=done) as progress:
            progress.advance(500)

    `iterable` is what to loop over; `total` is the number of steps, by default the length of a
    list, tuple, set, dict or the like (a queryset is not counted); without it no time is shown.
    `start` is what an earlier run had done: it counts as done, but not for the rate. `output` is a
    command's `self.stderr` or `self.stdout`, or a text stream; by default the process's stderr.
    On a terminal it is a bar (where tqdm is installed), elsewhere a line every `interval` seconds
    and one at the end; with `verbosity` 0 nothing. `done` is how many steps are done.

    It may be advanced by several tasks, or threads, at once. Raises ValueError for a negative
    number, TypeError for a loop over nothing.
    """

    def __init__(
        self,
        iterable: Iterable[T] | AsyncIterable[T] | None = None,
        total: float | None = None,
        description: str = "",
        *,
        unit: str = "it",
        start: float = 0,
        output: TextIO | OutputWrapper | None = None,
        verbosity: int = 1,
        interval: float = INTERVAL,
    ) -> None:
        if total is None and isinstance(iterable, (Sequence, Set, Mapping, ValuesView)):
            total = len(iterable)
        for name, number in (("total", total), ("start", start), ("interval", interval)):
            if number is not None and number < 0:
                raise ValueError(f"{name} must be 0 or more, not {number}.")
        self.iterable = iterable
        self.total = total
        self.done = start
        self._lock = threading.Lock()
        self._shown: _Shown
        output = sys.stderr if output is None else output
        if verbosity <= 0:
            self._shown = _Nothing()
        elif output.isatty() and find_spec("tqdm") is not None:
            self._shown = _bar(_stream(output), total, description, unit, start)
        else:
            self._shown = _Lines(_stream(output), total, description, unit, start, interval)

    def advance(self, count: float = 1) -> None:
        """Count `count` more steps as done."""
        if count < 0:
            raise ValueError(f"advance() takes 0 or more, not {count}.")
        with self._lock:
            self.done += count
            self._shown.advance(count)

    def write(self, text: str) -> None:
        """Write a line of text, above the bar where there is one; nothing with verbosity 0."""
        with self._lock:
            self._shown.write(text)

    def close(self) -> None:
        """Show the last state; nothing is shown after that. Idempotent."""
        with self._lock:
            shown, self._shown = self._shown, _Nothing()
            shown.close()

    def __enter__(self) -> Progress[T]:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Progress[T]:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        if not isinstance(self.iterable, Iterable):
            raise TypeError(self._no_loop("for"))
        return self._iterate(self.iterable)

    def __aiter__(self) -> AsyncIterator[T]:
        if not isinstance(self.iterable, AsyncIterable):
            raise TypeError(self._no_loop("async for"))
        return self._aiterate(self.iterable)

    def _iterate(self, iterable: Iterable[T]) -> Iterator[T]:
        with self:
            for item in iterable:
                yield item
                self.advance()

    async def _aiterate(self, iterable: AsyncIterable[T]) -> AsyncIterator[T]:
        with self:
            async for item in iterable:
                yield item
                self.advance()

    def _no_loop(self, loop: str) -> str:
        what = "nothing" if self.iterable is None else type(self.iterable).__name__
        return (
            f"`{loop}` cannot loop over this Progress, which was given {what}: give it an "
            f"iterable for `{loop}`, or use it as a context manager and call advance()."
        )


class _Nothing:
    def advance(self, count: float) -> None:
        pass

    def write(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    """Plain lines: for logs, and where tqdm is not installed."""

    def __init__(
        self,
        stream: Any,
        total: float | None,
        description: str,
        unit: str,
        start: float,
        interval: float,
    ) -> None:
        self._stream = stream
        self._total = total
        self._prefix = f"{description}: " if description else ""
        self._unit = unit
        self._start = self._done = start
        self._interval = interval
        self._began = self._written = time.monotonic()

    def advance(self, count: float) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._written >= self._interval:
            self._written = now
            self._line(now)

    def write(self, text: str) -> None:
        self._put(text)

    def close(self) -> None:
        self._line(time.monotonic())

    def _line(self, now: float) -> None:
        self._put(self._prefix + self._text(now - self._began))

    def _put(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _text(self, elapsed: float) -> str:
        rate = (self._done - self._start) / elapsed if elapsed > 0 else 0.0
        text = f"{self._done:,}"
        if self._total is not None:
            text += f" of {self._total:,}"
        text += f" {self._unit}"
        if self._total:
            text += f" ({self._done / self._total:.0%})"
        text += f", {rate:,.{0 if rate >= 10 else 2}f} {self._unit}/s, {span(elapsed)}"
        if self._total is not None and self._done < self._total and rate > 0:
            text += f", {span((self._total - self._done) / rate)} left"
        return text


def span(seconds: float) -> str:
    """Return a length of time for people, as in 1:02:03 or 4:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Plain:
    """A command's output as a text stream: Django's wrapper ends every write with a new line."""

    def __init__(self, wrapper: OutputWrapper) -> None:
        self._wrapper = wrapper

    def write(self, text: str) -> None:
        self._wrapper.write(text, style_func=str, ending="")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapper, name)


def _stream(output: Any) -> Any:
    return _Plain(output) if isinstance(output, OutputWrapper) else output


def _bar(stream: Any, total: float | None, description: str, unit: str, start: float) -> _Shown:
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        # No monitor thread, which would redraw a bar that does not advance: not needed here.
        monitor_interval = 0

        def advance(self, count: float) -> None:
            self.update(count)

        def write(self, text: str) -> None:
            self.clear()
            self.fp.write(f"{text}\n")
            self.refresh()

    # The default lock is also one between processes, which no other process shares here.
    Bar.set_lock(threading.RLock())
    return cast(
        _Shown,
        Bar(
            total=total,
            desc=description or None,
            unit=f" {unit}",
            initial=start,
            file=stream,
            dynamic_ncols=True,
        ),
    )
