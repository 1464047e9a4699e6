"""What must become of programs of tasks and transaction blocks: the model of the property tests.

It knows nothing of Nuages, of SQL or of time: blocks are a tree (`scope_parts.py`), a row or a
hook belongs to a block until that ends, and a block with another one open in it lets nothing else
run. Every operation answers with the reports that it must bring about, in order for each actor. It
changes the model at once, so work on a copy where it may raise `NotCovered`.

It is one class, and longer than most: the rules of a scope belong together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db import Error, IntegrityError

from nuages.exceptions import BlockInterrupted, OpenBlock, ScopeEnded
from tests.integration.scope_parts import (
    PLACES,
    SEEDED,
    Actor,
    Block,
    Cancelled,
    Frame,
    NotCovered,
    Place,
    Report,
)
from tests.integration.scope_tools import Failure

MOST_CONNECTIONS = 8
MOST_FRAMES = 6

AT_ONCE = frozenset(["write", "bad", "read"])
"""Operations that are one statement."""
UNSCOPED = frozenset(["detached", "group", "bridged", "portal", "thread", "back"])
"""Frames that say nothing to the scope they are entered in."""


def _is_detached(actor: Actor) -> bool:
    return actor.detached or any(frame.kind == "detached" for frame in actor.frames)


class Model:
    def __init__(self, *, one_writer: bool) -> None:
        self.one_writer = one_writer
        """Whether only one transaction may write at a time in the whole database."""
        self.actors: dict[str, Actor] = {}
        self.committed = {SEEDED}
        self.hooks: list[str] = []
        """Those that have run."""
        self.reports: list[Report] = []
        self.names = 0

    # The operations

    def start(self, parent: str | None, *, grouped: bool) -> str:
        """Start an actor: a task that `parent` creates, in its innermost group or by itself."""
        name = f"actor {len(self.actors)}"
        made = Actor([], None)
        if parent is not None:
            starter = self._idle(parent)
            if starter.place == "thread":
                raise NotCovered
            made.base = starter.scope
            made.detached = _is_detached(starter)
            if grouped:
                if not starter.frames or starter.frames[-1].kind != "group":
                    raise NotCovered
                starter.frames[-1].children.append(name)
                made.group = parent, starter.frames[-1]
            self._report(parent, None)
        self.actors[name] = made
        self._report(name, None)
        return name

    def do(self, name: str, kind: str, **arguments: Any) -> None:
        """Run a statement, register a hook, or enter a frame."""
        actor = self._idle(name)
        if kind in PLACES and actor.place not in PLACES[kind][0]:
            raise NotCovered
        self._check_resources(actor, kind, arguments)
        scope = actor.scope
        if kind == "request" and (scope is not None or _is_detached(actor)):
            raise NotCovered
        if scope is not None and scope.doomed and not scope.is_over and kind in AT_ONCE:
            # Refused before it takes its turn.
            self._report(name, Error)
            return
        if not self._needs_turn(actor, kind) or self._has_turn(actor):
            self._perform(name, kind, arguments)
            return
        if scope is not None and scope.is_over:
            self._report(name, ScopeEnded)
            return
        actor.state, actor.pending = "waiting", (kind, arguments)

    def serve(self, name: str) -> None:
        """Perform what the actor waited for; it has its turn."""
        actor = self.actors[name]
        assert actor.pending is not None
        (kind, arguments), actor.pending = actor.pending, None
        actor.state = "idle"
        self._perform(name, kind, arguments)

    def waiting(self) -> list[str]:
        return [name for name, actor in self.actors.items() if actor.state == "waiting"]

    def next_in_line(self) -> list[str]:
        """The actors of which one must go on now."""
        return [name for name in self.waiting() if self._has_turn(self.actors[name])]

    def leave(self, name: str) -> None:
        """Leave the innermost frame, or end the actor."""
        actor = self._idle(name)
        if not actor.frames:
            self._end(name, None)
            return
        frame = actor.frames[-1]
        if frame.children:
            actor.state = "joining"
            return
        self._come_out(name, frame, self._exit(name, frame))

    def fail(self, name: str) -> None:
        """Raise an error in the innermost frame."""
        actor = self._idle(name)
        self._throw(name, actor, Failure)

    def cancel(self, name: str) -> None:
        actor = self.actors[name]
        if actor.state == "ended":
            raise NotCovered
        self._throw(name, actor, Cancelled)

    def interrupted(self, name: str, row: str, found: str) -> None:
        """A write of `row` was cancelled and went on: "completed", "there", "absent", "doomed"."""
        scope = self._idle(name).scope
        if found == "doomed":
            assert scope is not None
            assert scope.kind == "atomic"
            scope.doomed = scope.interrupted = True
        elif found in ("completed", "there"):
            self._write(scope, row)
        self._report(name, found)

    def may_interrupt(self, name: str) -> None:
        """Raise NotCovered where `interrupted` says nothing."""
        actor = self._idle(name)
        scope = actor.scope
        self._check_resources(actor, "write", {})
        if actor.place != "async" or not self._has_turn(actor):
            raise NotCovered
        if scope is not None and (scope.is_over or scope.doomed):
            raise NotCovered
        if self.one_writer and scope is not None and scope.parent is not None:
            # SQLite rolls the whole transaction back when a write is interrupted.
            raise NotCovered

    def new_row(self) -> str:
        self.names += 1
        return f"row {self.names:04}"

    # Statements and entries

    def _idle(self, name: str) -> Actor:
        actor = self.actors[name]
        if actor.state != "idle":
            raise NotCovered
        return actor

    def _report(self, name: str, outcome: Any, *, end: bool = False) -> None:
        self.reports.append(Report(name, outcome, end))

    @staticmethod
    def _needs_turn(actor: Actor, kind: str) -> bool:
        if actor.scope is None:
            return False
        return kind in ("write", "bulk", "bad", "bad bulk", "read", "atomic")

    def _has_turn(self, actor: Actor) -> bool:
        scope = actor.scope
        if scope is None:
            return True
        if scope.is_over:
            return False
        return scope.is_free or (scope.child is None and scope.caller in actor.frames)

    def _perform(self, name: str, kind: str, arguments: dict[str, Any]) -> None:
        actor = self.actors[name]
        scope = actor.scope
        if scope is not None and scope.is_over and kind not in UNSCOPED:
            self._report(name, ScopeEnded)
            return
        if kind in PLACES:
            self._enter(name, kind, **arguments)
            return
        if kind == "invalid":
            if scope is not None and scope.kind == "atomic":
                scope.doomed = True
            self._report(name, ValueError)
            return
        if kind == "hook":
            self._hook(name, **arguments)
            return
        self._keep_others_out(actor)
        if scope is not None and scope.doomed:
            self._report(name, Error)
        elif kind == "read":
            self._report(name, sorted([*self.committed, *self._seen(scope)]))
        elif kind in ("bad", "bad bulk"):
            if scope is not None and scope.kind == "atomic":
                scope.doomed = True
            self._report(name, IntegrityError)
        else:
            for row in arguments["rows"]:
                self._write(scope, row)
            self._report(name, None)

    def _keep_others_out(self, actor: Actor) -> None:
        """Code in a thread keeps its turn, once it has it: it cannot wait without it."""
        if actor.place != "thread":
            return
        opened: list[Block] = []
        for frame in reversed(actor.frames):
            if frame.kind == "thread":
                if actor.scope is not None and actor.scope not in opened:
                    actor.scope.caller = frame
                return
            if frame.block is not None:
                opened.append(frame.block)

    def _write(self, scope: Block | None, row: str) -> None:
        if scope is None or scope.kind != "atomic":
            self.committed.add(row)
        else:
            scope.rows.append(row)

    @staticmethod
    def _seen(scope: Block | None) -> Iterator[str]:
        while scope is not None:
            yield from scope.rows
            scope = scope.within

    def _hook(self, name: str, hook: str) -> None:
        scope = self.actors[name].scope
        if scope is not None and scope.kind == "atomic":
            if "writes" in hook and scope.transaction.parent is not None:
                # In a hold it takes a turn like everybody, and whoever is before it may keep it.
                raise NotCovered
            scope.transaction.hooks.append((scope, hook))
            self._report(name, None)
        elif scope is not None and ("writes" in hook or self.actors[name].place == "thread"):
            raise NotCovered
        else:
            self._report(name, self._run_hooks([hook]))

    def _run_hooks(self, hooks: list[str]) -> type[Exception] | None:
        for hook in hooks:
            self.hooks.append(hook)
            if "writes" in hook:
                self.committed.add(hook)
            if "fails" in hook:
                return Failure
        return None

    def _enter(
        self,
        name: str,
        kind: str,
        catches: bool,
        savepoint: bool = True,
        durable: bool = False,
        **_: Any,
    ) -> None:
        actor = self.actors[name]
        scope = actor.scope
        place = PLACES[kind][1] or actor.place
        frame = Frame(kind, place, scope, scope, catches)
        if kind == "detached":
            frame.scope = None
        elif kind == "hold" and scope is None:
            frame.block = frame.scope = Block("hold", None)
        elif kind == "request":
            frame.block = frame.scope = Block("request", None)
        elif kind == "back" and actor.place == "thread":
            for outer in actor.frames:
                held = outer.outer
                if held is not None and held.caller is outer and held.child is None:
                    held.caller = None
        elif kind == "atomic":
            self._keep_others_out(actor)
            if durable and scope is not None and scope.kind == "atomic":
                self._report(name, RuntimeError)
                return
            block = Block("atomic", scope)
            if block.within is not None:
                block.doomed = block.within.doomed
                block.savepoint = savepoint and not block.doomed
            if scope is not None:
                scope.child = block
            frame.block = frame.scope = block
        actor.frames.append(frame)
        self._report(name, None)

    def _check_resources(self, actor: Actor, kind: str, arguments: dict[str, Any]) -> None:
        if self.connections() >= MOST_CONNECTIONS or len(actor.frames) >= MOST_FRAMES:
            raise NotCovered
        if not self.one_writer or (kind == "hook" and "writes" not in arguments["hook"]):
            return
        scope = actor.scope
        writes = kind in ("write", "bulk", "bad", "bad bulk", "atomic", "hook")
        if writes and (scope is None or scope.kind != "atomic"):
            if any(block.kind == "atomic" for block in self.roots()):
                raise NotCovered
            others = (other for other in self.actors.values() if other.state == "waiting")
            if any(other.scope is not None and other.scope.kind != "atomic" for other in others):
                raise NotCovered

    def roots(self) -> list[Block]:
        """The open holds and transactions."""
        frames = (frame for actor in self.actors.values() for frame in actor.frames)
        return [
            frame.block
            for frame in frames
            if frame.block is not None
            and frame.block.state == "open"
            and frame.block.within is None
        ]

    def connections(self) -> int:
        """How many connections are in use, or may be."""
        frames = [frame for actor in self.actors.values() for frame in actor.frames]
        threads = sum(frame.kind == "thread" and frame.scope is None for frame in frames)
        return threads + sum(block.parent is None for block in self.roots())

    # Ends

    def _exit(
        self, name: str, frame: Frame, error: type[Exception] | None = None
    ) -> type[Exception] | None:
        """Leave the actor's innermost frame; return the error that comes out of it."""
        actor = self.actors[name]
        assert actor.frames[-1] is frame
        actor.frames.pop()
        if error is not None and self.waiting() and (frame.kind == "thread" or frame.children):
            # It takes time, in which those that wait for a block that has ended may go on.
            raise NotCovered
        if frame.kind == "thread" and frame.outer is not None and frame.outer.caller is frame:
            frame.outer.caller = None
        if frame.kind == "group" and error is not None:
            for child in list(frame.children):
                self._throw(child, self.actors[child], Cancelled)
            error = Cancelled if error is Cancelled else ExceptionGroup
        block = frame.block
        if block is None:
            return error
        if block.state == "killed":
            return error or ScopeEnded
        left_open = self._kill(block.child)
        block.child = None
        self._refuse(block)
        block.state = "ended"
        if block.parent is not None:
            block.parent.child = None
        if block.kind == "request":
            return error  # What is left open is logged.
        if block.kind == "hold":
            return error or (OpenBlock if left_open else None)
        if error is not None or left_open or block.doomed:
            self._roll_back(block)
            if error is None and left_open:
                return OpenBlock
            return error or (BlockInterrupted if block.interrupted else None)
        return self._commit(block, frame.place)

    def _kill(self, block: Block | None) -> bool:
        if block is None:
            return False
        self._kill(block.child)
        block.state, block.child = "killed", None
        self._refuse(block)
        return True

    def _refuse(self, block: Block) -> None:
        for name in self.waiting():
            actor = self.actors[name]
            if actor.scope is block:
                actor.state, actor.pending = "idle", None
                self._report(name, ScopeEnded)

    @staticmethod
    def _roll_back(block: Block) -> None:
        if block.within is None:
            return
        if not block.savepoint:
            block.within.doomed = True
            block.within.interrupted |= block.interrupted
        top = block.transaction
        # What the blocks inside left is this one's by now, unless they are open.
        top.hooks = [(owner, hook) for owner, hook in top.hooks if not owner.is_in(block)]

    def _commit(self, block: Block, place: Place) -> type[Exception] | None:
        if block.within is None:
            self.committed.update(block.rows)
            if block.parent is not None and place == "thread" and block.hooks:
                # One that is awaited from a thread gives the thread's turn back meanwhile.
                raise NotCovered
            return self._run_hooks([hook for _, hook in block.hooks])
        block.within.rows += block.rows
        top = block.transaction
        top.hooks = [
            (block.within if owner is block else owner, hook) for owner, hook in top.hooks
        ]
        return None

    def _throw(self, name: str, actor: Actor, error: type[Exception]) -> None:
        """Raise in an actor wherever it is."""
        if actor.state == "ended":
            return
        if error is Cancelled and any(frame.kind == "thread" for frame in actor.frames):
            raise NotCovered
        actor.state, actor.pending = "idle", None
        self._propagate(name, error)

    def _propagate(self, name: str, error: type[Exception]) -> None:
        """Let an error that was raised in the actor's innermost frame go its way."""
        frames = self.actors[name].frames
        if not frames:
            self._end(name, error)
            return
        frame = frames[-1]
        self._come_out(name, frame, self._exit(name, frame, error))

    def _come_out(self, name: str, frame: Frame, error: type[Exception] | None) -> None:
        """Go on where `frame` was entered, or with the error that came out of it."""
        if error is None or (frame.catches and error is not Cancelled):
            self._report(name, error)
        else:
            self._propagate(name, error)

    def _end(self, name: str, error: type[Exception] | None) -> None:
        actor = self.actors[name]
        actor.state = "ended"
        self._report(name, error, end=True)
        if actor.group is None:
            return
        owner, frame = actor.group
        frame.children.remove(name)
        if error is not None and error is not Cancelled:
            self._abort(owner, frame)
            return
        owning = self.actors[owner]
        if owning.state == "joining" and owning.frames[-1] is frame and not frame.children:
            owning.state = "idle"
            self._come_out(owner, frame, self._exit(owner, frame))

    def _abort(self, owner: str, group: Frame) -> None:
        """A task of a group failed: the others and the body of the group are cancelled."""
        actor = self.actors[owner]
        if group not in actor.frames:
            return  # It has been aborted already.
        inner = actor.frames[actor.frames.index(group) + 1 :]
        if any(frame.kind == "thread" for frame in inner):
            raise NotCovered
        actor.state, actor.pending = "idle", None
        while actor.frames[-1] is not group:
            self._exit(owner, actor.frames[-1], Cancelled)
        self._come_out(owner, group, self._exit(owner, group, ExceptionGroup))
