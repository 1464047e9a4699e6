"""Byte ranges: what the Range and If-Range headers ask for (RFC 9110, section 14)."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from django.utils.http import parse_http_date_safe

MAX_RANGES = 16
"""A request for more ranges gets the whole file: many small ranges cost far more to answer than
to ask for (RFC 9110, 17.15)."""

_RANGE = re.compile(r"[ \t]*bytes=(.*)", re.IGNORECASE | re.DOTALL)
_SPEC = re.compile(r"[ \t]*([0-9]*)-([0-9]*)[ \t]*")


class Unsatisfiable(Exception):
    """None of the ranges lies in the file: the answer is 416."""


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """The bytes from `start` up to, but without, `stop`."""

    start: int
    stop: int

    def content_range(self, size: int) -> str:
        """Return the value of the Content-Range header."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_range(header: str, size: int) -> list[ByteRange] | None:
    """Return the ranges of a file of `size` bytes that a Range header asks for.

    None means that the header is to be ignored and the whole file sent (another unit, a syntax
    error, more than MAX_RANGES). Ranges outside the file are left out; where ranges overlap or
    touch, all are merged and sorted, as RFC 9110 (15.3.7.2) allows, so that no byte is sent twice.
    Raises `Unsatisfiable` when none is left.
    """
    if (match := _RANGE.fullmatch(header)) is None:
        return None
    specs = [spec for spec in match[1].split(",") if spec.strip(" \t")]
    if not specs or len(specs) > MAX_RANGES:
        return None
    ranges = []
    for spec in specs:
        if (match := _SPEC.fullmatch(spec)) is None:
            return None
        first, last = match.groups()
        if not first and not last:
            return None
        if not first:
            length = _number(last)
            if length and not size:
                return None  # satisfiable, but Content-Range cannot express zero bytes
            found = ByteRange(max(size - length, 0), size)
        else:
            if last and _number(last) < _number(first):
                return None
            stop = min(_number(last) + 1, size) if last else size
            found = ByteRange(_number(first), stop)
        if found.start < found.stop:
            ranges.append(found)
    if not ranges:
        raise Unsatisfiable
    return _merge(ranges)


def if_range_passes(header: str, etag: str, modified: int) -> bool:
    """Return whether the ranges may be sent (RFC 9110, 13.1.5); else the whole file is.

    An entity tag must be strong and the same. A date must be the same, too, and more than a
    second old: within one second the file may have changed twice.
    """
    header = header.strip(" \t")
    if header.startswith(('"', "W/")):
        return header == etag and not etag.startswith("W/")
    return parse_http_date_safe(header) == modified and modified < int(time.time()) - 1


def _number(digits: str) -> int:
    """Return a number of any length; Python would refuse to read the very long ones."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 20 else 10**20


def _merge(ranges: list[ByteRange]) -> list[ByteRange]:
    merged: list[ByteRange] = []
    for found in sorted(ranges):
        if merged and found.start <= merged[-1].stop:
            merged[-1] = ByteRange(merged[-1].start, max(merged[-1].stop, found.stop))
        else:
            merged.append(found)
    return ranges if len(merged) == len(ranges) else merged
