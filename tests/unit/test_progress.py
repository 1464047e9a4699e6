"""Progress of loops: a bar on a terminal, plain lines elsewhere, the same counts in both."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.core.management.base import OutputWrapper
from django.core.management.color import color_style

from nuages import progress as module
from nuages.progress import Progress, span


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def last(stream: io.StringIO) -> str:
    return re.split("[\r\n]", stream.getvalue().rstrip())[-1].strip()


async def three() -> AsyncIterator[str]:
    for item in "abc":
        yield item


def test_around_a_loop() -> None:
    output = io.StringIO()
    progress = Progress("abc", description="Letters", unit="letters", output=output)
    assert list(progress) == ["a", "b", "c"]
    assert progress.done == 3
    assert re.fullmatch(
        r"Letters: 3 of 3 letters \(100%\), [\d.,]+ letters/s, 0:00", last(output)
    ), output.getvalue()


async def test_around_an_async_loop() -> None:
    output = io.StringIO()
    progress = Progress(three(), total=4, output=output)
    assert [item async for item in progress] == ["a", "b", "c"]
    assert last(output).startswith("3 of 4 it (75%)")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_start_counts_as_done_but_not_for_the_rate(
    stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = stream()
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Progress(total=1000, start=900, unit="rows", output=output, interval=5) as progress:
        now += 10
        progress.advance(50)
        assert progress.done == 950
    text = last(output)
    if stream is Terminal:
        assert "950/1000" in text
        assert "95%" in text
    else:
        assert text == "950 of 1,000 rows (95%), 5.00 rows/s, 0:10, 0:10 left"


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    output = Terminal()
    before = threading.active_count()
    with Progress(total=10, description="Rows", unit="rows", output=output) as progress:
        progress.advance(4)
        progress.write("a line above")
        assert threading.active_count() == before
    assert "\r" in output.getvalue()
    assert "a line above\n" in output.getvalue()
    assert re.search(r"Rows:\s+40%\|.*\| 4/10 \[.* rows/s\]", last(output)), output.getvalue()


def test_a_command_s_output_is_not_broken_into_lines_or_coloured() -> None:
    output = Terminal()
    wrapper = OutputWrapper(output)
    wrapper.style_func = color_style(force_color=True).ERROR
    for _ in Progress(range(3), output=wrapper):
        pass
    assert output.getvalue().count("\n") == 1
    assert "\x1b[31" not in output.getvalue()
    assert "3/3" in output.getvalue()


def test_without_tqdm_a_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    output = Terminal()
    list(Progress("ab", output=output))
    assert output.getvalue().startswith("2 of 2 it (100%)")


def test_verbosity_0_writes_nothing() -> None:
    output = Terminal()
    with Progress("ab", output=output, verbosity=0) as progress:
        list(progress)
        progress.write("text")
    assert output.getvalue() == ""


def test_lines_are_an_interval_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Progress(total=40, output=output, interval=10) as progress:
        for _ in range(30):
            now += 1
            progress.advance()
    assert [line.split(" ")[0] for line in output.getvalue().splitlines()] == [
        "10", "20", "30", "30",
    ]  # fmt: skip


def test_a_failing_loop_shows_how_far_it_came() -> None:
    output = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress(total=3, output=output) as progress:
        progress.advance()
        raise ZeroDivisionError
    assert last(output).startswith("1 of 3")
    progress.close()
    assert output.getvalue().count("\n") == 1


def test_an_unknown_total() -> None:
    output = io.StringIO()
    list(Progress(iter("ab"), output=output))
    assert re.fullmatch(r"2 it, [\d,.]+ it/s, 0:00", last(output))


def test_a_queryset_is_not_counted() -> None:
    class Rows:
        def __len__(self) -> int:
            raise AssertionError("this would be a query for all rows")

        def __iter__(self) -> Any:
            return iter("ab")

    assert list(Progress(Rows(), verbosity=0)) == ["a", "b"]


def test_threads_may_advance_it_together() -> None:
    output = Terminal()
    with Progress(total=4000, output=output) as progress:
        threads = [
            threading.Thread(target=lambda: [progress.advance() for _ in range(1000)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "4000/4000" in last(output)


def test_wrong_use_is_told() -> None:
    with pytest.raises(ValueError, match="total must be 0 or more, not -1"):
        Progress(total=-1)
    with pytest.raises(ValueError, match="advance"):
        Progress(verbosity=0).advance(-1)
    with pytest.raises(TypeError, match=r"`for` cannot loop .* given nothing: give it"):
        iter(Progress(total=1, verbosity=0))
    with pytest.raises(TypeError, match="given async_generator"):
        iter(Progress(three(), verbosity=0))
    with pytest.raises(TypeError, match=r"`async for`.*given str"):
        Progress("ab", verbosity=0).__aiter__()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (3723, "1:02:03")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text
