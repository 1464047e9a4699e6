"""The bytes of events, read back by a parser that is written from the specification alone."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuages.http import Event
from nuages.http.event import HEARTBEAT, encode


@dataclass
class Browser:
    """An EventSource's state (WHATWG HTML, 9.2.6, "Interpreting an event stream")."""

    last_event_id: str = ""
    reconnection_time: int = 3000
    events: list[tuple[str, str, str]] = field(default_factory=list)
    """Type, data and last event id of what was dispatched."""
    _data: str = ""
    _type: str = ""
    _id: str = ""

    def feed(self, stream: bytes) -> Browser:
        text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        for line in text.split("\n")[:-1]:
            self._line(line)
        return self

    def _line(self, line: str) -> None:
        if line == "":
            self._dispatch()
        elif not line.startswith(":"):
            name, colon, value = line.partition(":")
            if colon and value.startswith(" "):
                value = value[1:]
            self._field(name, value)

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value and all(digit in "0123456789" for digit in value):
            self.reconnection_time = int(value)

    def _dispatch(self) -> None:
        self.last_event_id = self._id
        data, kind = self._data, self._type
        self._data = self._type = ""
        if data:
            self.events.append((kind or "message", data[:-1], self.last_event_id))


def test_the_parser_reads_the_specifications_examples() -> None:
    stock = b"data: YHOO\ndata: +2\ndata: 10\n\n"
    assert Browser().feed(stock).events == [("message", "YHOO\n+2\n10", "")]
    four = (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event"
    )
    browser = Browser().feed(four + b"\n\n")
    assert browser.events == [
        ("message", "first event", "1"),
        ("message", "second event", ""),
        ("message", " third event", ""),
    ]
    empty = b"data\n\ndata\ndata\n\ndata:"
    assert [data for _, data, _ in Browser().feed(empty).events] == ["", "\n"]


def arrives(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))
ID = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))
NASTY = st.text(st.sampled_from(list(" :\r\n\0\ufeff\u2028\u2029\x0b\x85dataid")))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)  # fmt: skip


@given(st.lists(TEXT | NASTY))
def test_text_arrives(texts: list[str]) -> None:
    stream = HEARTBEAT + b"".join(encode(text) for text in texts)
    expected = [("message", arrives(text), "") for text in texts]
    assert Browser().feed(stream).events == expected


@given(st.lists(st.tuples(TEXT | NASTY, LINE, ID, st.integers(0, 10**12) | st.none())))
def test_every_field_arrives(rows: list[tuple[str, str, str, int | None]]) -> None:
    browser = Browser()
    for data, kind, id_, retry in rows:
        browser.feed(encode(Event(data, event=kind, id=id_, retry=retry)))
        assert browser.events.pop() == (kind or "message", arrives(data), id_)
        assert browser.last_event_id == id_
        assert retry is None or browser.reconnection_time == retry
        assert not browser.events


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine it is
@given(JSON.filter(lambda value: not isinstance(value, (str, type(None)))))
def test_json_arrives(value: Any) -> None:
    ((_, data, _),) = Browser().feed(encode(value)).events
    assert json.loads(data) == value
    assert "\n" not in data


@given(TEXT | NASTY)
def test_bytes_are_text_in_utf_8(text: str) -> None:
    for kind in (bytes, bytearray, memoryview):
        assert encode(kind(text.encode())) == encode(text)


def test_how_it_looks() -> None:
    event = Event({"a": "é"}, id=7, event="token", retry=0)
    assert encode(event) == 'event: token\nid: 7\nretry: 0\ndata: {"a": "é"}\n\n'.encode()
    assert encode("one\ntwo\r\n\rend") == b"data: one\ndata: two\ndata: \ndata: end\n\n"
    assert encode("") == b"data: \n\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (decimal.Decimal("1.50"), '"1.50"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (datetime.date(2024, 2, 29), '"2024-02-29"'),
        (lazystr("later"), "later"),
        (mark_safe("<b>"), "<b>"),
        (True, "true"),
        ((1, [2]), "[1, [2]]"),
    ],
)
def test_djangos_kinds_of_data(value: Any, text: str) -> None:
    assert encode(value) == f"data: {text}\n\n".encode()


def test_an_event_without_data_is_not_dispatched_but_taken() -> None:
    browser = Browser().feed(encode(Event(id="5", retry=10)))
    assert browser.events == []
    assert (browser.last_event_id, browser.reconnection_time) == ("5", 10)
    browser.feed(encode(Event("x", id="")))
    assert browser.last_event_id == ""


def test_an_encoder_of_ones_own() -> None:
    class Encoder(json.JSONEncoder):
        def default(self, value: Any) -> Any:
            return sorted(value)

    assert encode({3, 1}, Encoder) == b"data: [1, 3]\n\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "a\nb"}, "id is one line"),
        ({"id": "a\r"}, "id is one line"),
        ({"id": "a\0b"}, "id is without NUL"),
        ({"event": "a\nb"}, "type is one line"),
        ({"event": "\r\n"}, "type is one line"),
        ({"retry": -1}, "from 0, not -1"),
    ],
)
def test_what_a_browser_would_misread_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Event("data", **arguments)


@pytest.mark.parametrize(
    "arguments", [{"id": 1.5}, {"id": True}, {"id": b"1"}, {"event": 1}, {"retry": "5"},
                  {"retry": 1.5}, {"retry": True}],
)  # fmt: skip
def test_wrong_types_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"An event's|retry"):
        Event("data", **arguments)


@pytest.mark.parametrize("arguments", [{}, {"event": "ping"}])
def test_an_event_that_says_nothing_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="says nothing"):
        Event(**arguments)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (None, TypeError, "yielded None"),
        (b"\xff", ValueError, "UTF-8 text .*base64"),
        ("\ud800", ValueError, "text that UTF-8 can write"),
        (Event("x", id="\udfff"), ValueError, "text that UTF-8 can write"),
        (math.nan, ValueError, "JSON"),
        ([math.inf], ValueError, "JSON"),
        (object(), TypeError, "not JSON serializable"),
    ],
)
def test_what_cannot_be_sent_is_refused(item: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode(item)
