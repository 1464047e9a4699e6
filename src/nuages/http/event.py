"""One server-sent event and its bytes (WHATWG HTML, "Server-sent events").

A browser reads back exactly what is written here, or there is an error: a field that the receiver
would cut short or leave out is refused where the event is made.
"""

from __future__ import annotations

import json
import re
from dataclasses import KW_ONLY, dataclass

from django.core.serializers.json import DjangoJSONEncoder
from django.utils.functional import Promise

_LINE_END = re.compile("\r\n|\r|\n")
"""A line end as the specification's parser knows it; `str.splitlines` knows more of them."""

HEARTBEAT = b":\n\n"
"""A comment, which receivers leave out."""


@dataclass(frozen=True, slots=True)
class Event:
    r"""One event of an event stream.

    Args:
        data: Text (`str`, or `bytes` in UTF-8) is sent as it is; anything else as JSON. Line
            ends (CR, LF, CRLF) all arrive as "\n". None: no data, so that the browser takes
            `id` and `retry` but dispatches nothing.
        id: What the browser sends back as Last-Event-ID when it connects again. "" makes it
            forget the last id.
        event: The type, to which `addEventListener` listens; without one it is "message".
        retry: How long the browser waits before it connects again, in milliseconds.

    Raises ValueError for an id with NUL or a line end, a type with a line end, a negative
    retry, and an event that says nothing.
    """

    data: object = None
    _: KW_ONLY
    id: str | int | None = None
    event: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        if self.id is not None:
            _require_id(self.id)
        if self.event is not None:
            _require_one_line("type", self.event)
        if self.retry is not None:
            require_retry(self.retry)
        if self.data is None and self.id is None and self.retry is None:
            raise ValueError(
                "This event says nothing: give it data, an id or a retry. For the JSON value "
                'null write Event("null").'
            )


def encode(item: object, encoder: type[json.JSONEncoder] = DjangoJSONEncoder) -> bytes:
    """Return the bytes of an `Event`, or of an event with `item` as its data.

    Raises ValueError for text that is not Unicode (bytes that are not UTF-8, lone surrogates)
    and for NaN and the infinities, which JSON does not have; TypeError for None and for what
    `encoder` cannot write.
    """
    if not isinstance(item, Event):
        if item is None:
            raise TypeError(
                "The source of an event stream yielded None. Yield text, bytes, something for "
                "JSON or an Event."
            )
        item = Event(item)
    lines = []
    if item.event:
        lines.append(f"event: {item.event}")
    if item.id is not None:
        lines.append(f"id: {item.id}")
    if item.retry is not None:
        lines.append(f"retry: {item.retry}")
    if item.data is not None:
        text = _text(item.data, encoder)
        lines += [f"data: {line}" for line in _LINE_END.split(text)]
    lines.append("\n")
    try:
        return "\n".join(lines).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"An event is text that UTF-8 can write: {error}.") from error


def require_retry(retry: object) -> None:
    """Raise unless `retry` is a number of milliseconds that the protocol can express."""
    if not isinstance(retry, int) or isinstance(retry, bool):
        raise TypeError(f"retry is a whole number of milliseconds, not {retry!r}.")
    if retry < 0:
        raise ValueError(f"retry is a number of milliseconds from 0, not {retry}.")


def _require_id(value: str | int) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        return
    if "\0" in _require_one_line("id", value):
        raise ValueError(f"An event's id is without NUL, browsers ignore others: {value!r}.")


def _require_one_line(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"An event's {what} is a str, not {value!r}.")
    if _LINE_END.search(value):
        raise ValueError(f"An event's {what} is one line, without CR and LF: {value!r}.")
    return value


def _text(data: object, encoder: type[json.JSONEncoder]) -> str:
    if isinstance(data, str):
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"An event's bytes are UTF-8 text ({error}). Encode other bytes, in base64 for "
                "example."
            ) from error
    if isinstance(data, Promise):  # gettext_lazy()
        return str(data)
    return json.dumps(data, cls=encoder, allow_nan=False, ensure_ascii=False)
