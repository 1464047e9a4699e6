"""Range and If-Range against RFC 9110's text and examples."""

from __future__ import annotations

import time

import pytest
from django.utils.http import http_date
from hypothesis import given
from hypothesis import strategies as st

from nuages.http.byte_ranges import (
    MAX_RANGES,
    ByteRange,
    Unsatisfiable,
    if_range_passes,
    parse_range,
)

HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # RFC 9110, 14.1.2, on a representation of 10,000 bytes.
        ("bytes=0-499", [(0, 500)]),
        ("bytes=500-999", [(500, 1000)]),
        ("bytes=-500", [(9500, 10000)]),
        ("bytes=9500-", [(9500, 10000)]),
        ("bytes=0-0,-1", [(0, 1), (9999, 10000)]),
        ("bytes= 0-999, 4500-5499, -1000", [(0, 1000), (4500, 5500), (9000, 10000)]),
        ("bytes=500-600,601-999", [(500, 1000)]),
        ("bytes=500-700,601-999", [(500, 1000)]),
        # Order is kept where nothing overlaps.
        ("bytes=700-800,0-9", [(700, 801), (0, 10)]),
        ("bytes=700-800,0-9,5-20", [(0, 21), (700, 801)]),
        ("BYTES=0-9", [(0, 10)]),
        ("bytes=0-9,,\t10-19 ,", [(0, 20)]),
        ("bytes=0-99999", [(0, 10000)]),
        ("bytes=-99999", [(0, 10000)]),
        (f"bytes=1-{HUGE}", [(1, 10000)]),
        (f"bytes=-{HUGE}", [(0, 10000)]),
        ("bytes=000000000000000000000001-2", [(1, 3)]),
        # Outside: left out while another one is inside.
        ("bytes=0-9,20000-20001", [(0, 10)]),
        ("bytes=0-9,-0", [(0, 10)]),
    ],
)
def test_what_is_asked_for(header: str, expected: list[tuple[int, int]]) -> None:
    assert parse_range(header, 10000) == [ByteRange(*pair) for pair in expected]


@pytest.mark.parametrize(
    "header",
    [
        "", "bytes", "bytes=", "bytes=,", "bytes=-", "bytes=a-b", "bytes=1", "bytes=5-1",
        "bytes=0-9,5-1", "bytes=0-9;10-19", "bytes=--1", "bytes=1-2-3", "bytes=+1-2",
        "bytes=0x1-2", "bytes=\u0661-\u0662", "bytes=1 - 2", "bytes = 0-1",
        "items=0-9", "seconds=1-2",
        "bytes=" + ",".join(f"{n * 10}-{n * 10 + 1}" for n in range(MAX_RANGES + 1)),
    ],
)  # fmt: skip
def test_what_is_ignored(header: str) -> None:
    assert parse_range(header, 10000) is None


@pytest.mark.parametrize(
    "header", ["bytes=10000-", "bytes=-0", f"bytes={HUGE}-", "bytes=-0,10000-"]
)
def test_what_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(header, 10000)


def test_an_empty_file() -> None:
    assert parse_range("bytes=-5", 0) is None  # RFC 9110: satisfiable; there is nothing to name
    for header in ("bytes=0-", "bytes=0-0", "bytes=-0"):
        with pytest.raises(Unsatisfiable):
            parse_range(header, 0)


SPEC = st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from(["a-b", "a-", "-b"]))


@given(st.lists(SPEC, min_size=1, max_size=MAX_RANGES), st.integers(1, 40))
def test_the_ranges_are_the_bytes_asked_for_each_once(
    specs: list[tuple[int, int, str]], size: int
) -> None:
    wanted: set[int] = set()
    parts = []
    for first, last, kind in specs:
        low, high = min(first, last), max(first, last)
        parts.append({"a-b": f"{low}-{high}", "a-": f"{first}-", "-b": f"-{last}"}[kind])
        wanted |= {
            "a-b": set(range(low, high + 1)),
            "a-": set(range(first, size)),
            "-b": set(range(max(size - last, 0), size)),
        }[kind]
    wanted &= set(range(size))
    try:
        found = parse_range("bytes=" + ",".join(parts), size)
    except Unsatisfiable:
        assert not wanted
        return
    assert found is not None
    sent = [byte for piece in found for byte in range(piece.start, piece.stop)]
    assert len(sent) == len(set(sent))
    assert set(sent) == wanted


@given(st.text(st.sampled_from("bytes=0123456789-, \t;\x00é")), st.integers(0, 100))
def test_any_header_has_an_answer(header: str, size: int) -> None:
    try:
        for found in parse_range(f"bytes={header}", size) or []:
            assert 0 <= found.start < found.stop <= size
    except Unsatisfiable:
        pass


def test_if_range() -> None:
    old = int(time.time()) - 100
    assert if_range_passes('"a"', '"a"', old)
    assert if_range_passes(' "a"\t', '"a"', old)
    assert not if_range_passes('"b"', '"a"', old)
    assert not if_range_passes('W/"a"', '"a"', old)
    assert not if_range_passes('W/"a"', 'W/"a"', old)
    assert not if_range_passes('"a", "b"', '"a"', old)
    assert not if_range_passes("*", '"a"', old)
    assert not if_range_passes("", '"a"', old)
    assert if_range_passes(http_date(old), '"a"', old)
    # Later is not the same: the condition is a match, no comparison.
    assert not if_range_passes(http_date(old + 10), '"a"', old)
    now = int(time.time())
    assert not if_range_passes(http_date(now), '"a"', now)
