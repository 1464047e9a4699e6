"""The bridge: sync code runs on the event loop, and awaits where it would block.

`core.py` is the one place that knows about greenlets.
"""

from nuages.bridge.core import Bridge, await_, bridge_of, current_bridge, run_on_loop
from nuages.bridge.wrapping import on_loop

__all__ = ["Bridge", "await_", "bridge_of", "current_bridge", "on_loop", "run_on_loop"]
