"""The end of a bridge whose coroutine is closed in another thread than its loop's.

The garbage collector runs in any thread, but only a greenlet's own can switch to it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuages.bridge import Bridge


def unwind_on_loop(bridge: Bridge, target: Any) -> None:
    """From another thread: have the loop unwind the greenlet `target` and end `bridge`.

    What fails meanwhile is reported to the loop's exception handler. A loop that is closed
    unwinds nothing any more.
    """

    def unwind() -> None:
        try:
            with suppress(GeneratorExit):  # raised for it, and now at the end of its way
                bridge.unwind(target, GeneratorExit())
        finally:
            bridge.end()

    if bridge.loop.is_closed():
        bridge.end()
    else:
        bridge.loop.call_soon_threadsafe(unwind)
