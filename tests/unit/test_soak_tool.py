"""The soak's own judgement: what it must not let pass, and what it must."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from django.db import IntegrityError, OperationalError

from nuages.exceptions import HookFailed
from tests.soak.client import Answer
from tests.soak.errors import classes, is_lost
from tests.soak.kinds import Faulty, Ledger, Visitor, Wrong, _expect, write
from tests.soak.picture import draw, step
from tests.soak.verdict import growth, judge_data, judge_left, judge_log, judge_memory


def samples(leak: float, *, noise: float = 300_000, warm: int = 60) -> list[dict[str, Any]]:
    """Four hundred samples of 80 MB that grow at first, and then by `leak` bytes a second."""
    chance = random.Random(3)
    return [
        {
            "time": 1000.0 + 3 * number,
            "rss": 80e6 + 10e6 * min(number / warm, 1) + leak * 3 * number
            + chance.uniform(-noise, noise) + (5e6 if number % 37 == 0 else 0),
            "requests": 100 * number,
        }
        for number in range(400)
    ]  # fmt: skip


def test_a_curve_that_is_level_after_the_warm_up_is_well() -> None:
    found = growth(samples(0))
    assert abs(found.part) < 0.002
    assert judge_memory(found) == []


def test_a_leak_of_two_per_cent_is_found() -> None:
    found = growth(samples(3000))
    assert 0.015 < found.part < 0.025
    assert len(judge_memory(found)) == 1


GAUGES: dict[str, Any] = {
    "tasks": 3, "background": 0, "bridges": 1, "greenlets": 1, "descriptors": 30, "scopes": 0,
    "cache connections in use": 0, "greenlets left": [], "errors kept": [], "threads at work": [],
    "pools": {"default": {"size": 2, "used": 0, "waiting": 0}},
}  # fmt: skip


@pytest.mark.parametrize("name", ["tasks", "background", "bridges", "greenlets", "descriptors"])
def test_one_more_of_anything_is_left_behind(name: str) -> None:
    assert judge_left(GAUGES, GAUGES) == []
    assert len(judge_left(GAUGES, GAUGES | {name: GAUGES[name] + 1})) == 1
    assert judge_left(GAUGES | {name: GAUGES[name] + 1}, GAUGES) == []


def test_of_greenlets_left_behind_it_is_said_what_keeps_them() -> None:
    after = GAUGES | {"greenlets": 2, "greenlets left": ["it waits here"]}
    wrong = ["2 greenlets, 1 before", "a greenlet is left: it waits here"]
    assert judge_left(GAUGES, after) == wrong
    assert judge_left(after, after) == []


def test_one_error_may_be_kept_and_not_each() -> None:
    assert judge_left(GAUGES, GAUGES | {"errors kept": ["the last one"] * 2}) == []
    assert len(judge_left(GAUGES, GAUGES | {"errors kept": ["another"] * 3})) == 3


def test_a_thread_that_works_on_is_left_behind() -> None:
    after = GAUGES | {"threads at work": ["it waits here"]}
    assert judge_left(GAUGES, after) == ["a thread works on:\nit waits here"]


def test_a_connection_in_use_is_left_behind() -> None:
    pools = {"default": {"size": 2, "used": 1, "waiting": 0}}
    assert len(judge_left(GAUGES, GAUGES | {"pools": pools})) == 1


def record(logger: str, message: str, errors: str | None = None, level: str = "ERROR") -> str:
    return json.dumps({"level": level, "logger": logger, "message": message, "errors": errors})


def test_the_log_may_have_what_was_meant_and_nothing_else() -> None:
    meant = [
        record("django.request", "Not Found: /nothing/", level="WARNING"),
        record("django.request", "Internal Server Error: /fail/", "Failure"),
        record("django.request", "Internal Server Error: /write/a/", "OperationalError"),
        record("uvicorn.error", "Started", level="INFO"),
        record(
            "nuages.postgresql",
            "closed a connection whose statement did not end: cancellation failed: connection to "
            'server at "127.0.0.1", port 20001 failed: server closed the connection unexpectedly',
            level="WARNING",
        ),
    ]
    wrong = [
        record("asyncio", "Task exception was never retrieved", "ValueError"),
        record("py.warnings", "ResourceWarning: unclosed socket", level="WARNING"),
        record("django.request", "Internal Server Error: /write/a/", "KeyError"),
        record(
            "nuages.postgresql",
            "closed a connection whose statement did not end: cancellation timeout expired",
            level="WARNING",
        ),
        "Exception ignored in: <coroutine>",
    ]
    found, counts = judge_log([*meant, *wrong])
    assert len(found) == len(wrong)
    assert sum(counts.values()) == len(meant)


def test_errors_of_a_lost_connection_are_told_from_others() -> None:
    assert is_lost("OperationalError")
    assert is_lost("InterfaceError,TransactionManagementError")
    assert not is_lost("KeyError,OperationalError")
    assert is_lost("HookFailed,OperationalError")
    assert not is_lost("HookFailed")
    assert not is_lost("HookFailed,IntegrityError")
    with pytest.raises(Faulty):
        _expect(Answer(500, [], b"OperationalError"), 201)
    with pytest.raises(Wrong):
        _expect(Answer(500, [], b"KeyError"), 201)
    with pytest.raises(Wrong):
        _expect(Answer(200, [], b"else"), 200, b"this")


def hook_failed(cause: BaseException) -> HookFailed:
    failed = HookFailed(hook="hook", error=cause, later="There was no hook after it")
    failed.__cause__ = cause
    return failed


def test_of_a_hook_that_failed_it_is_told_what_it_raised() -> None:
    lost = hook_failed(OperationalError("terminating connection"))
    assert classes(lost) == {"HookFailed", "OperationalError"}
    assert not is_lost(",".join(classes(hook_failed(IntegrityError("twice")))))


class Answering:
    """A server that has the same answer to all."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    async def ask(self, path: str, **options: Any) -> Answer:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "state", "least"),
    [
        (Answer(201, [], b""), "acknowledged", ["", " kept", " hook"]),
        (Answer(500, [], b"HookFailed,OperationalError"), "committed", ["", " kept"]),
        (Answer(500, [], b"OperationalError"), "unknown", []),
    ],
)
async def test_what_was_said_of_a_write_decides_what_must_be_there(
    answer: Answer, state: str, least: list[str]
) -> None:
    ledger = Ledger()
    visitor = Visitor(cast(Any, Answering(answer)), random.Random(1), ledger, "v")
    with nullcontext() if answer.status == 201 else pytest.raises(Faulty):
        await write(visitor, None)
    assert getattr(ledger, state) == {"v-1": "write"}
    rows = [f"v-1{part}" for part in ["", " kept", " hook"]]
    assert judge_data(dict.fromkeys(rows, 1), ledger) == []
    must = [f"v-1{part}" for part in least]
    assert judge_data(dict.fromkeys(must, 1), ledger) == []
    for missing in must:
        assert judge_data(dict.fromkeys(set(rows) - {missing}, 1), ledger), missing
    assert judge_data({"v-1": 1}, ledger)  # a part of the transaction


def test_the_picture_is_an_svg_with_every_sample() -> None:
    made = samples(0)
    root = ElementTree.fromstring(draw(made, growth(made)))
    lines = [line for line in root.iter() if line.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [400, 400, 2]


@pytest.mark.parametrize(
    ("span", "wanted"), [(10, 2), (12, 2), (97, 20), (200_000, 50_000), (0.7, 0.2)]
)
def test_marks_are_round_and_few(span: float, wanted: float) -> None:
    assert step(span) == pytest.approx(wanted)
