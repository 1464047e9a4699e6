"""Tasks that run transaction blocks step by step, as they are told to.

An actor is one task with a stack of frames, each a real block of code: `async with aatomic()`,
`with transaction.atomic()` in a function on the loop, a TaskGroup, a thread. It waits for a
command, runs it in its innermost frame, and waits for the next, which reports the outcome of the
last one. So the test says who does what next, and no step depends on time.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.db import Error, transaction

from nuages import off_loop, on_loop
from nuages.bridge import await_
from nuages.db import aatomic, aon_commit, detached, hold_connection
from nuages.db.transaction import request_connections
from tests.integration.scope_parts import SEEDED
from tests.integration.scope_tools import Failure
from tests.integration.sweep_tools import Cut, Timing
from tests.library.models import Author

PATIENCE = 20.0
"""Seconds after which an actor that should have reported is stuck."""


@dataclass
class Command:
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    entered: bool = False
    """Whether the frame was entered, so that an error came out of it, not of its entry."""


class Hooks(list[str]):
    """What ran after commits; makes hooks that note it here."""

    def make(self, name: str) -> Any:
        def note() -> None:
            self.append(name)
            if "writes" in name:
                Author.objects.create(name=name)
            if "fails" in name:
                raise Failure

        async def note_async() -> None:
            await asyncio.sleep(0)
            self.append(name)
            if "writes" in name:
                await Author.objects.acreate(name=name)
            if "fails" in name:
                raise Failure

        return note_async if "async" in name else note


class Stage:
    """What the actors of one program share."""

    def __init__(self) -> None:
        self.actors: dict[str, Actor] = {}
        self.hooks = Hooks()
        self.reported = 0
        self.closed = False

    def start(self, name: str, starter: Actor | None, *, grouped: bool) -> None:
        """Start an actor in the calling task, whose context is its own."""
        self.actors[name] = Actor(self, name, starter, grouped=grouped)

    async def close(self) -> None:
        """Have all actors leave all that they are in, whatever comes of it."""
        self.closed = True
        for actor in self.actors.values():
            actor.tell(Command("leave"))
        if self.actors:
            tasks = [actor.task for actor in self.actors.values()]
            _, left = await asyncio.wait(tasks, timeout=PATIENCE)
            assert not left, f"actors are stuck: {left}"


class Actor:
    """One task; see the module."""

    def __init__(self, stage: Stage, name: str, starter: Actor | None, *, grouped: bool) -> None:
        self.stage = stage
        self.name = name
        self.reports: deque[tuple[int, Any, bool]] = deque()
        """Not looked at yet: a number that orders those of all actors, the outcome, the end."""
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Future[Command] | None = None
        self._told_in_thread: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._in_thread = False
        self.outcome: Any = None
        self.groups: list[asyncio.TaskGroup] = []
        create: Any = asyncio.create_task
        if grouped:
            assert starter is not None
            create = starter.groups[-1].create_task
        self.task: asyncio.Task[None] = create(
            self.level(), name=name, context=contextvars.copy_context()
        )
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        outcome = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._report(outcome, True)

    def _report(self, outcome: Any, end: bool) -> None:
        self.stage.reported += 1
        self.reports.append((self.stage.reported, outcome, end))
        self.outcome = None

    def tell(self, command: Command) -> None:
        """Have the actor run a command."""
        if self._in_thread:
            self._told_in_thread.put(command)
        elif self._told is not None and not self._told.done():
            self._told.set_result(command)

    # Waiting for commands

    async def _next(self) -> Command:
        self._in_thread = False
        self._told = self._loop.create_future()
        self._report(self.outcome, False)
        return Command("leave") if self.stage.closed else await self._told

    def _next_in_thread(self) -> Command:
        outcome = self.outcome

        def wait() -> None:
            self._in_thread = True
            self._report(outcome, False)
            if self.stage.closed:
                self.tell(Command("leave"))

        self._loop.call_soon_threadsafe(wait)
        return self._told_in_thread.get()

    # Frames whose code can await

    async def level(self) -> None:
        """Run commands until one leaves the frame."""
        self.outcome = None
        while True:
            command = await self._next()
            if command.kind == "leave":
                break
            if command.kind == "fail":
                raise Failure
            try:
                self.outcome = await self._perform(command)
            except Exception as error:
                if command.entered and not command.arguments["catches"]:
                    raise
                self.outcome = error
        self.outcome = None

    async def _perform(self, command: Command) -> Any:
        arguments = command.arguments
        match command.kind:
            case "write":
                await Author.objects.acreate(name=arguments["rows"][0])
            case "bulk":
                await Author.objects.abulk_create(map(_author, arguments["rows"]))
            case "bad bulk":
                await Author.objects.abulk_create(map(_author, [*arguments["rows"], SEEDED]))
            case "bad":
                await Author.objects.acreate(name=SEEDED)
            case "invalid":
                await Author.objects.acreate(pk="no number", name="invalid")
            case "read":
                return await Author.objects.order_by("name").values_list("name", flat=True).alist()
            case "interrupt":
                return await self._interrupt(**arguments)
            case "hook":
                await aon_commit(self.stage.hooks.make(arguments["hook"]))
            case "start":
                self.stage.start(arguments["name"], self, grouped=arguments["grouped"])
            case "bridged":
                await on_loop(self._sync_frame)(command, nullcontext())
            case "portal":
                await on_loop(self._frame)(command, _Nothing())
            case "thread":
                place = sync_to_async(self._thread_frame, thread_sensitive=False)
                await place(command, nullcontext())
            case _:
                await self._frame(command, _context_manager(command))
        return None

    async def _frame(self, command: Command, manager: Any) -> None:
        async with manager as entered:
            command.entered = True
            if command.kind == "group":
                self.groups.append(entered)
            try:
                await self.level()
            finally:
                if command.kind == "group":
                    self.groups.pop()

    async def _interrupt(self, row: str, point: int, timing: Timing) -> str:
        """Write with a cancellation at the given suspension, go on, and see what became of it."""
        cut = Cut(Author.objects.acreate(name=row), range(point, point + 1), timing)
        try:
            await cut.run()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        else:
            if cut.cancelled:
                raise AssertionError("a cancellation was lost")
            return "completed"
        try:
            found = await Author.objects.filter(name=row).aexists()
        except Error:
            return "doomed"
        return "there" if found else "absent"

    # Frames of sync code: on the loop, and in threads

    def _sync_frame(self, command: Command, manager: Any) -> None:
        with manager:
            command.entered = True
            self._sync_level(lambda: await_(self._next()), self._sync_frame)

    def _thread_frame(self, command: Command, manager: Any) -> None:
        with manager:
            command.entered = True
            self._sync_level(self._next_in_thread, self._thread_frame)

    def _sync_level(self, next_command: Any, frame: Any) -> None:
        self.outcome = None
        while (command := next_command()).kind != "leave":
            if command.kind == "fail":
                raise Failure
            try:
                self.outcome = self._perform_sync(command, frame)
            except Exception as error:
                if command.entered and not command.arguments["catches"]:
                    raise
                self.outcome = error
        self.outcome = None

    def _perform_sync(self, command: Command, frame: Any) -> Any:
        arguments = command.arguments
        match command.kind:
            case "write":
                Author.objects.create(name=arguments["rows"][0])
            case "bulk":
                Author.objects.bulk_create(map(_author, arguments["rows"]))
            case "bad bulk":
                Author.objects.bulk_create(map(_author, [*arguments["rows"], SEEDED]))
            case "bad":
                Author.objects.create(name=SEEDED)
            case "invalid":
                Author.objects.create(pk="no number", name="invalid")
            case "read":
                return list(Author.objects.order_by("name").values_list("name", flat=True))
            case "hook":
                transaction.on_commit(self.stage.hooks.make(arguments["hook"]))
            case "start":
                self.stage.start(arguments["name"], self, grouped=arguments["grouped"])
            case "thread":
                off_loop(self._thread_frame)(command, nullcontext())
            case "back":
                async_to_sync(self._frame)(command, _Nothing())
            case "atomic":
                frame(command, transaction.atomic(None, *_options(command)))
            case other:
                raise AssertionError(f"{other} in sync code")
        return None


class _Nothing:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc_info: object) -> None:
        pass


def _author(name: str) -> Author:
    return Author(name=name)


def _options(command: Command) -> tuple[bool, bool]:
    return command.arguments["savepoint"], command.arguments["durable"]


def _context_manager(command: Command) -> Any:
    match command.kind:
        case "atomic":
            return aatomic(None, *_options(command))
        case "hold":
            return hold_connection()
        case "request":
            return request_connections()
        case "detached":
            return detached()
        case "group":
            return asyncio.TaskGroup()
        case other:
            raise AssertionError(f"{other} in a coroutine")
