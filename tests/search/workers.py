"""The processes that run programs; one that crashes or hangs is told of and replaced."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.search.databases import VARIABLE, Entries
from tests.search.program import Program

ROOT = Path(__file__).parents[2]
STACKS = 6000
"""Characters of a dead process's last words that are kept."""
LINE = 1 << 22


@dataclass(frozen=True)
class Result:
    """What became of one program."""

    seed: int
    faults: tuple[str, ...]

    @property
    def signature(self) -> str:
        """What tells one kind of fault from another: the first, without names and numbers."""
        return signature(self.faults[0])


def signature(fault: str) -> str:
    """Leave out of a fault what differs from one run to the next."""
    text = fault.partition("\n")[0].partition(" <- ")[0]
    text = re.sub(r"^.*? raised (?=\w+: )", "raised ", text)
    text = re.sub(r"0x[0-9a-f]+|Task-\d+|\d+(\.\d+)?", "N", text)
    return re.sub(r"'(default|other|N:N)'|\[[\d, TrueFals]*\]", "X", text)[:160]


class Worker:
    """A process with two databases of its own."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._process: asyncio.subprocess.Process | None = None
        self._log: Any = None

    async def seeds(self, vendor: str, begin: int, end: int) -> AsyncIterator[Result]:
        """Run the programs of the seeds from `begin` to before `end`."""
        while begin < end:
            async for result in self._ask({"seeds": [begin, end], "vendor": vendor}, begin):
                begin = result.seed + 1
                yield result

    async def run(self, program: Program, times: int) -> AsyncIterator[Result]:
        """Run a program so many times; fewer where the process ends over it."""
        command = {"program": program.dump(), "times": times}
        async for result in self._ask(command, program.seed):
            yield result

    async def _ask(self, command: dict[str, Any], seed: int) -> AsyncIterator[Result]:
        process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(command).encode() + b"\n")
        begun = True
        while line := await process.stdout.readline():
            answer = json.loads(line)
            if "ready" in answer:
                return
            begun = "begin" in answer
            if begun:
                seed = answer["begin"]
            else:
                yield Result(seed, tuple(answer["faults"]))
        self._process = None
        if not begun:
            # Its last program left something behind, so it made room for a new one.
            await process.wait()
            return
        yield Result(seed, (await self._last_words(process),))

    async def _start(self) -> asyncio.subprocess.Process:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        environment = os.environ | {
            VARIABLE: json.dumps(self._entries),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.search.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            env=environment,
            limit=LINE,
        )
        assert process.stdout is not None
        if b"ready" not in await process.stdout.readline():
            raise RuntimeError(f"a worker did not start: {await self._last_words(process)}")
        self._process = process
        return process

    async def _last_words(self, process: asyncio.subprocess.Process) -> str:
        code = await process.wait()
        how = f"crashed: {signal.Signals(-code).name}" if code < 0 else f"hung, status {code}"
        self._log.seek(0)
        return f"the process {how}\n{self._log.read()[-STACKS:]}"

    async def close(self, *, kill: bool = False) -> None:
        """End it: it reads no more. `kill`: in the middle of a program."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            if kill:
                process.kill()
            await process.wait()


@asynccontextmanager
async def working(entries: Entries) -> AsyncIterator[Worker]:
    """Have a worker for the length of the block."""
    worker = Worker(entries)
    try:
        yield worker
    finally:
        await worker.close()
