"""Statements that write, read and register hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import OperationalError, connections, transaction
from django.db.models import Value

from nuages.db import acursor, aon_commit
from nuages.exceptions import OutcomeUnknown
from tests.library.models import Author
from tests.search.journal import Hook, Write
from tests.search.model import BY_HOOK, HookFailed
from tests.search.program import ASYNC, SYNC, Node
from tests.search.running import Frame, run_async, run_sync, statement, tell

SEEDED = 6
SLOW = {
    "postgresql": "SELECT pg_sleep(0.004)",
    "mysql": "SELECT SLEEP(0.004)",
    "sqlite": (
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
        " SELECT max(i) FROM n"
    ),
}
"""What takes some milliseconds, so that a cancellation finds it at work."""
INSERT = "INSERT INTO library_author (name) VALUES (%s)"


def _begin(node: Node, frame: Frame) -> tuple[Write, Any, list[Author]]:
    alias = node.args["alias"]
    tags = tuple(frame.run.tag() for _ in range(2 if node.args["how"] == "bulk" else 1))
    write = frame.run.journal.write(alias, frame.blocks.get(alias), tags)
    return write, Author.objects.using(alias), [Author(name=tag) for tag in tags]


def _failed(write: Write, error: BaseException) -> None:
    known = isinstance(error, Exception) and not isinstance(error, OutcomeUnknown)
    write.state = "failed" if known else "unknown"
    write.error = tell(error)


@statement("write", ASYNC)
async def write_async(node: Node, frame: Frame) -> None:
    """Insert a row, or two in one call."""
    write, manager, authors = _begin(node, frame)
    try:
        match node.args["how"]:
            case "create":
                await manager.acreate(name=write.tags[0])
            case "bulk":
                await manager.abulk_create(authors)
            case "get_or_create":
                await manager.aget_or_create(name=write.tags[0])
            case "save":
                await authors[0].asave(using=node.args["alias"])
            case "cursor":
                async with acursor(node.args["alias"]) as cursor:
                    await cursor.execute(INSERT, [write.tags[0]])
    except BaseException as error:
        _failed(write, error)
        raise
    frame.acknowledge(write)


@statement("write", SYNC)
def write_sync(node: Node, frame: Frame) -> None:
    """Insert a row, or two in one call."""
    write, manager, authors = _begin(node, frame)
    try:
        match node.args["how"]:
            case "create":
                manager.create(name=write.tags[0])
            case "bulk":
                manager.bulk_create(authors)
            case "get_or_create":
                manager.get_or_create(name=write.tags[0])
            case "save":
                authors[0].save(using=node.args["alias"])
            case "cursor":
                with connections[node.args["alias"]].cursor() as cursor:
                    cursor.execute(INSERT, [write.tags[0]])
    except BaseException as error:
        _failed(write, error)
        raise
    frame.acknowledge(write)


def _question(node: Node, frame: Frame) -> tuple[str, Any]:
    """A text that only this query asks for, and a queryset whose answer it is."""
    asked = frame.run.tag()
    rows = Author.objects.using(node.args["alias"]).filter(name="seed 0")
    return asked, rows.annotate(answer=Value(asked)).values_list("answer", flat=True)


def _compare(frame: Frame, asked: str, answers: Any) -> None:
    if list(answers) != [asked]:
        frame.run.faults.append(f"asked for {asked!r}, the answer was {answers!r}")


@statement("read", ASYNC)
async def read_async(node: Node, frame: Frame) -> None:
    """Ask for a text of its own and compare the answer."""
    asked, rows = _question(node, frame)
    if node.args["how"] != "orm":
        async with acursor(node.args["alias"]) as cursor:
            if node.args["how"] == "slow":
                await cursor.execute(SLOW[frame.run.program.vendor])
            await cursor.execute("SELECT %s", [asked])
            _compare(frame, asked, await cursor.fetchone())
    else:
        _compare(frame, asked, await rows.alist())


@statement("read", SYNC)
def read_sync(node: Node, frame: Frame) -> None:
    """Ask for a text of its own and compare the answer."""
    asked, rows = _question(node, frame)
    if node.args["how"] != "orm":
        with connections[node.args["alias"]].cursor() as cursor:
            if node.args["how"] == "slow":
                cursor.execute(SLOW[frame.run.program.vendor])
            cursor.execute("SELECT %s", [asked])
            _compare(frame, asked, cursor.fetchone())
    else:
        _compare(frame, asked, rows)


@statement("violate", ASYNC)
async def violate_async(node: Node, frame: Frame) -> None:
    """Violate a constraint, which raises IntegrityError."""
    await Author.objects.using(node.args["alias"]).acreate(name="seed 0")


@statement("violate", SYNC)
def violate_sync(node: Node, frame: Frame) -> None:
    """Violate a constraint, which raises IntegrityError."""
    Author.objects.using(node.args["alias"]).create(name="seed 0")


def _locked(node: Node, frame: Frame) -> Any:
    """A row that only this program has, with a lock."""
    alias = node.args["alias"]
    tag = frame.run.tag()
    write = frame.run.journal.write(alias, frame.blocks.get(alias), (tag,))
    return write, Author.objects.using(alias), tag


@statement("lock", ASYNC)
async def lock_async(node: Node, frame: Frame) -> None:
    """Insert a row and lock it by select_for_update()."""
    write, manager, tag = _locked(node, frame)
    try:
        author = await manager.acreate(name=tag)
        frame.acknowledge(write)
        found = await manager.select_for_update().aget(pk=author.pk)
    except BaseException as error:
        if write.state == "begun":
            _failed(write, error)
        raise
    _compare(frame, tag, [found.name])


@statement("lock", SYNC)
def lock_sync(node: Node, frame: Frame) -> None:
    """Insert a row and lock it by select_for_update()."""
    write, manager, tag = _locked(node, frame)
    try:
        author = manager.create(name=tag)
        frame.acknowledge(write)
        found = manager.select_for_update().get(pk=author.pk)
    except BaseException as error:
        if write.state == "begun":
            _failed(write, error)
        raise
    _compare(frame, tag, [found.name])


def _hook(node: Node, frame: Frame) -> tuple[Hook, Callable[[], Any]]:
    """The note of a hook, and the hook itself."""
    alias = node.args["alias"]
    block = frame.blocks.get(alias)
    note = frame.run.journal.hook(block, frame.run.tag())
    outer = frame if block is None else block.root.frame
    # A hook runs where its transaction ends.
    outside = outer.outside([alias]) if outer is not None else frame.outside([alias])

    def end() -> None:
        match node.args["fails"]:
            case "error":
                note.failed = True
                raise HookFailed
            case "database":
                note.failed = True
                raise OperationalError(BY_HOOK)

    def plain() -> None:
        note.ran += 1
        with noted():
            if outer is not None and outer.place == "thread":
                run_sync(node.body, outside.at("thread"))
            else:
                run_sync(node.body, outside.at("sync"))
        end()

    async def awaited() -> None:
        note.ran += 1
        with noted():
            await run_async(node.body, outside.at("coroutine"))
        end()

    @contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except BaseException:
            note.failed = True
            raise

    match node.args["how"]:
        case "async":
            return note, awaited
        case "returns":
            return note, lambda: awaited()
    return note, plain


@statement("hook", ASYNC)
async def hook_async(node: Node, frame: Frame) -> None:
    """Register a hook by aon_commit()."""
    note, hook = _hook(node, frame)
    await aon_commit(hook, node.args["alias"])
    note.state = "unknown" if frame.run.tainted else "done"


@statement("hook", SYNC)
def hook_sync(node: Node, frame: Frame) -> None:
    """Register a hook by on_commit()."""
    note, hook = _hook(node, frame)
    transaction.on_commit(hook, node.args["alias"])
    note.state = "unknown" if frame.run.tainted else "done"
