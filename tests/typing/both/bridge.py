"""`on_loop` and `off_loop` keep what goes in and comes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import assert_type

from django.http import HttpRequest, HttpResponse

from nuages import off_loop, on_loop


def add(left: int, right: int = 0) -> int:
    return left + right


@on_loop
def double(number: int) -> int:
    return 2 * number


@on_loop
async def view(request: HttpRequest, pk: int) -> HttpResponse:
    return HttpResponse()


@on_loop
async def count(limit: int) -> AsyncGenerator[int, None]:
    yield limit


class Report:
    def __init__(self, title: str) -> None:
        self.title = title

    @on_loop
    def total(self, start: int) -> int:
        return start


@off_loop
def read(path: str) -> bytes:
    return b""


async def uses(request: HttpRequest, report: Report) -> None:
    assert_type(await on_loop(add)(1, right=2), int)
    assert_type(await double(3), int)
    assert_type(await view(request, pk=1), HttpResponse)
    assert_type(await report.total(1), int)
    assert_type(await on_loop(Report)("t"), Report)
    assert_type(read("p"), bytes)
    async for number in count(3):
        assert_type(number, int)
    await on_loop(add)("1")  # error: mypy arg-type, pyright reportArgumentType
    await double()  # error: mypy call-arg, pyright reportCallIssue
    await view(request, "1")  # error: mypy arg-type, pyright reportArgumentType
    read(b"p")  # error: mypy arg-type, pyright reportArgumentType
    await read("p")  # error: mypy misc, pyright reportGeneralTypeIssues
    on_loop(3)  # error: mypy call-overload, pyright reportCallIssue, pyright reportArgumentType
    text: str = await double(1)  # error: mypy assignment, pyright reportAssignmentType
