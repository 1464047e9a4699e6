"""The parts of `manage.py shell`: the plain Python prompt with `await`, and code given to it."""

from __future__ import annotations

import ast
import builtins
import code
import functools
import inspect
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from nuages.management.interactive import PromptLoop, run_code, without_our_frames
from nuages.management.running import wait_for

_GIVEN = "<string>"
"""The file name that `exec()` gives to code in a string."""


def run_given(source: Any, namespace: dict[str, Any]) -> None:
    """Do what `exec(source, namespace)` does; the source may await at its top level.

    Only such code runs on a loop: other code runs as in stock Django, so it may start loops.
    """
    if isinstance(source, str):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compiled = compile(source, _GIVEN, "exec", flags, dont_inherit=True)
        if compiled.co_flags & inspect.CO_COROUTINE:
            try:
                wait_for(functools.partial(run_code, compiled, namespace))
            except Exception as error:
                error.__traceback__ = without_our_frames(error, _GIVEN)
                raise
            return
        source = compiled
    builtins.exec(source, namespace)  # noqa: S102 - it is what a shell is for


class AsyncConsole(code.InteractiveConsole):
    """The standard library's console, whose input may await and whose sync code is on a loop."""

    def __init__(self, namespace: dict[str, Any], loop: PromptLoop) -> None:
        super().__init__(namespace)
        self.loop = loop
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

    def runcode(self, code: types.CodeType) -> None:
        """Run one input; KeyboardInterrupt goes up to `interact()`, which reports it."""
        try:
            self.loop.run(run_code(code, self.locals))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            theirs = without_our_frames(error, self.filename)
            try:
                # `showtraceback()` drops the frame that an exception was caught in.
                raise error.with_traceback(theirs)
            except BaseException:
                self.showtraceback()

    def raw_input(self, prompt: str = "") -> str:
        """Read a line; tasks go on until the user begins it."""
        with self.loop.going_on(prompt):
            return super().raw_input(prompt)


def interact(namespace: dict[str, Any], *, startup: bool) -> None:
    """Run the prompt until its end; with `startup` first read what Python reads at its start."""
    if startup:
        for path in _startup_files():
            try:
                builtins.exec(compile(path.read_bytes(), str(path), "exec"), namespace)  # noqa: S102 - as Python
            except Exception:
                traceback.print_exc()
    hook = getattr(sys, "__interactivehook__", None)
    if hook is not None:
        try:
            hook()
        except Exception:
            print("Failed calling sys.__interactivehook__")
            traceback.print_exc()
    try:
        import readline
        import rlcompleter
    except ImportError:
        pass  # as on Windows: no editing of lines, no history
    else:
        readline.set_completer(rlcompleter.Completer(namespace).complete)
    with PromptLoop() as loop:
        AsyncConsole(namespace, loop).interact()


def _startup_files() -> list[Path]:
    """Return the files of PYTHONSTARTUP and ~/.pythonrc.py that exist, each once."""
    named = [os.environ.get("PYTHONSTARTUP"), os.path.expanduser("~/.pythonrc.py")]
    return [Path(path) for path in dict.fromkeys(named) if path and os.path.isfile(path)]
