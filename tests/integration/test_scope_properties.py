"""Random programs of tasks, transactions and failures do what the model says, and nothing else.

A state machine, not generated trees of programs: what goes wrong in scopes is in the order in
which tasks do their steps, and here each step is one rule, so hypothesis chooses the order and
shrinks it. The tasks are real (`scope_actors.py`), the expectations are those of `scope_model.py`:
which rows are committed and seen, which hooks ran in which order, which errors come out where, and
who waits for whom.

`NUAGES_PROPERTIES=2000` runs so many examples, `NUAGES_PROPERTIES_SEED` others.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from django.db import connections
from django.test import override_settings
from hypothesis import HealthCheck, Phase, event, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from nuages.bridge import core as bridge
from nuages.db.pool.pool import open_pools
from nuages.db.scopes import fair_lock as turns
from nuages.exceptions import ScopeEnded
from tests.integration.pool_tools import assert_whole
from tests.integration.scope_actors import PATIENCE, Actor, Command, Stage
from tests.integration.scope_model import Model
from tests.integration.scope_parts import SEEDED, Cancelled, NotCovered, Report
from tests.integration.sweep_tools import TIMINGS, Timing, settled
from tests.library.models import Author

pytestmark = pytest.mark.every_database

EXAMPLES = int(os.environ.get("NUAGES_PROPERTIES", "40"))
SEED = int(os.environ.get("NUAGES_PROPERTIES_SEED", "5"))
MOST_ACTORS = 7

waiters: set[int] = set()
"""Those who wait for a turn in a scope now."""


class CountedWaiter(turns._Waiter):
    """Says that it waits: an actor that must wait can be told from one that is still at work."""

    __slots__ = ()

    def wait(self, timeout: float | None) -> None:
        waiters.add(id(self))
        try:
            super().wait(timeout)
        finally:
            waiters.discard(id(self))


who = st.integers(0, MOST_ACTORS - 1)
often = st.sampled_from([True, True, True, False])
rarely = st.sampled_from([*[False] * 9, True])


class Programs(RuleBasedStateMachine):
    """Each rule has one actor do one step."""

    one_writer = False

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(one_writer=self.one_writer)
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.runner.run(self._begin())

    async def _begin(self) -> None:
        self.stage = Stage()
        await Author.objects.all().adelete()
        await Author.objects.acreate(name=SEEDED)

    # Rules

    @initialize(
        opened=st.sampled_from(["atomic", "hold", "atomic", "group", "request", ""]),
        children=st.integers(0, 3),
    )
    def first(self, opened: str, children: int) -> None:
        """Most programs begin with tasks that share something, since few would get there."""
        self._start(None, grouped=False)
        if opened:
            options = {"savepoint": True, "durable": False} if opened == "atomic" else {}
            self._do(0, opened, catches=False, **options)
        for _ in range(children):
            self._start("actor 0", grouped=opened == "group")

    @rule(who=who, grouped=st.booleans(), alone=rarely)
    def start(self, who: int, grouped: bool, alone: bool) -> None:
        if len(self.model.actors) < MOST_ACTORS:
            self._start(None if alone else self._name(who), grouped=grouped and not alone)

    def _start(self, parent: str | None, *, grouped: bool) -> None:
        def begin(model: Model) -> Command:
            name = model.start(parent, grouped=grouped)
            return Command("start", {"name": name, "grouped": grouped})

        async def start_one(command: Command) -> None:
            self.stage.start(command.arguments["name"], None, grouped=False)

        if parent is None:
            self._step(begin, start_one)
        else:
            self._tell(parent, begin)

    @rule(who=who, catches=st.booleans(), savepoint=often, durable=rarely)
    def block(self, who: int, catches: bool, savepoint: bool, durable: bool) -> None:
        options = {"savepoint": savepoint, "durable": durable}
        self._do(who, "atomic", catches=catches, **options)

    @rule(
        who=who,
        kind=st.sampled_from(
            ["group", "bridged", "portal", "thread", "back", "hold", "request", "detached"]
        ),
        catches=st.booleans(),
    )
    def frame(self, who: int, kind: str, catches: bool) -> None:
        self._do(who, kind, catches=catches)

    @rule(who=who, kind=st.sampled_from(["write", "write", "bulk", "read"]))
    def statement(self, who: int, kind: str) -> None:
        rows = [self.model.new_row() for _ in range(2 if kind == "bulk" else 1)]
        self._do(who, kind, rows=rows)

    @rule(who=who, kind=st.sampled_from(["bad", "bad bulk", "invalid"]))
    def failing_statement(self, who: int, kind: str) -> None:
        self._do(who, kind, rows=[self.model.new_row()])

    @rule(
        who=who,
        kind=st.sampled_from(["", "", " async", " writes", " async writes", " fails"]),
    )
    def hook(self, who: int, kind: str) -> None:
        self._do(who, "hook", hook=f"{self.model.new_row()} hook{kind}")

    @rule(who=who, how=st.sampled_from(["leave", "leave", "leave", "fail", "fail", "cancel"]))
    def end(self, who: int, how: str) -> None:
        name = self._name(who)
        if how == "cancel":
            name = list(self.model.actors)[who % len(self.model.actors)]
        if how == "leave":
            self._leave(name)
        elif how == "fail":
            self._tell(name, lambda model: (model.fail(name), Command("fail"))[1])
        else:

            async def cancel(command: Command) -> None:
                self.stage.actors[name].task.cancel()

            self._step(lambda model: (model.cancel(name), Command("cancel"))[1], cancel)

    @rule(who=who, point=st.integers(1, 4), timing=st.sampled_from(TIMINGS))
    def interrupt(self, who: int, point: int, timing: Timing) -> None:
        name = self._name(who)
        try:
            copy.deepcopy(self.model).may_interrupt(name)
        except NotCovered:
            return
        row = self.model.new_row()

        async def interrupt() -> None:
            actor = self.stage.actors[name]
            actor.tell(Command("interrupt", {"row": row, "point": point, "timing": timing}))
            await self._until(lambda: bool(actor.reports))
            found = actor.reports[0][1]
            assert isinstance(found, str), found
            event(f"an interrupted write is {found}")
            self.model.interrupted(name, row, found)
            await self._compare()

        self.runner.run(interrupt())

    @rule()
    def look(self) -> None:
        self.runner.run(self._look())

    async def _look(self) -> None:
        names = await Author.objects.order_by("name").values_list("name", flat=True).alist()
        assert names == sorted(self.model.committed)
        assert self.stage.hooks == self.model.hooks

    # A step

    def _name(self, who: int) -> str:
        """An actor that can do something, if there is one."""
        actors = self.model.actors
        idle = [name for name, actor in actors.items() if actor.state == "idle"]
        names = idle or list(actors)
        return names[who % len(names)]

    def _do(self, who: int, kind: str, **arguments: Any) -> None:
        name = self._name(who)

        def do(model: Model) -> Command:
            model.do(name, kind, **arguments)
            return Command(kind, arguments)

        self._tell(name, do)

    def _leave(self, name: str) -> None:
        self._tell(name, lambda model: (model.leave(name), Command("leave"))[1])

    def _tell(self, name: str, change: Callable[[Model], Command]) -> None:
        async def tell(command: Command) -> None:
            self.stage.actors[name].tell(command)

        self._step(change, tell)

    def _step(
        self,
        change: Callable[[Model], Command],
        act: Callable[[Command], Coroutine[Any, Any, None]],
    ) -> None:
        """Change the model and, where it covers that, have it done and compare."""
        model = copy.deepcopy(self.model)
        try:
            command = change(model)
        except NotCovered:
            return
        self.model = model

        async def step() -> None:
            await act(command)
            await self._compare()

        self.runner.run(step())

    async def _compare(self) -> None:
        """Wait for all that must happen now, and see that it is that and no more."""
        while True:
            for report in self._expected():
                await self._check(report)
            if not (candidates := self.model.next_in_line()):
                break
            await self._until(lambda: any(self._actor(name).reports for name in candidates))
            reported = [name for name in candidates if self._actor(name).reports]
            self.model.serve(min(reported, key=lambda name: self._actor(name).reports[0][0]))
        waiting = len(self.model.waiting())
        await self._until(lambda: len(waiters) == waiting or self._unexpected() is not None)
        assert self._unexpected() is None, self._unexpected()

    def _expected(self) -> Iterator[Report]:
        while self.model.reports:
            yield self.model.reports.pop(0)

    def _actor(self, name: str) -> Actor:
        return self.stage.actors[name]

    def _unexpected(self) -> str | None:
        for name, actor in self.stage.actors.items():
            if actor.reports:
                return f"{name} reports {actor.reports[0][1:]}"
        return None

    async def _check(self, expected: Report) -> None:
        await self._until(lambda: bool(self.stage.actors[expected.actor].reports))
        _, outcome, end = self._actor(expected.actor).reports.popleft()
        assert end == expected.end, (expected, outcome)
        wanted = expected.outcome
        if wanted is Cancelled:
            wanted = asyncio.CancelledError
        if isinstance(wanted, type):
            assert isinstance(outcome, wanted), (expected, outcome)
            assert isinstance(outcome, ScopeEnded) == (wanted is ScopeEnded), (expected, outcome)
        else:
            assert outcome == wanted, (expected, outcome)

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0)
        except TimeoutError:
            states = {name: actor.state for name, actor in self.model.actors.items()}
            raise AssertionError(f"stuck: {states}, {len(waiters)} wait for a turn") from None

    # The end

    def teardown(self) -> None:
        """Every actor ends as it stands, those who wait after those they wait for."""
        try:
            self._leave_all()
            self.runner.run(self._end())
        finally:
            if not self.stage.closed:
                self.runner.run(self.stage.close())
            waiters.clear()
            self.runner.close()
        assert not bridge._bridges

    def _leave_all(self) -> None:
        before = None
        while before is not self.model:
            before = self.model
            for name, actor in reversed(self.model.actors.items()):
                if actor.state == "idle":
                    self._leave(name)

    async def _end(self) -> None:
        covered = all(actor.state == "ended" for actor in self.model.actors.values())
        event(f"the model covers it to the end: {covered}")
        await self.stage.close()
        await settled()
        if covered:
            await self._look()
        for pool in open_pools():
            assert_whole(pool)


class OneWriterPrograms(Programs):
    """SQLite has one writer; on MySQL locks on gaps make writers wait that share no row."""

    one_writer = True


checked = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    report_multiple_bugs=False,
)


@pytest.mark.timeout(60 + EXAMPLES)
def test_programs_of_tasks_and_transactions(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_Waiter", CountedWaiter)
    connections.settings["default"]["OPTIONS"] = {"pool": {"max_size": 10}}
    print(f"NUAGES_PROPERTIES_SEED={SEED}")
    machine = Programs if database == "postgresql" else OneWriterPrograms
    with override_settings(NUAGES={"SCOPE_TIMEOUT": 2 * PATIENCE}):
        run_state_machine_as_test(seed(SEED)(machine), settings=checked)
    gc.collect()
