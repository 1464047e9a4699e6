"""A process whose resolver is the test's: `python -m tests.faults.resolving ENTRY HOST`.

ENTRY is an entry of DATABASES as JSON, of a server that answers. It asks at HOST first, whose name
must be looked up, then at the entry's own, and prints as JSON what came of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any


async def main(entry: dict[str, Any], host: str) -> dict[str, Any]:
    from django.db import connections

    from tests.integration.conftest import use
    from tests.integration.pool_tools import Heartbeat
    from tests.library.models import Tag

    use({**entry, "HOST": host})
    found: dict[str, Any] = {}
    async with Heartbeat() as heart:
        began = time.monotonic()
        try:
            await Tag.objects.acount()
        except Exception as error:
            found |= {"error": type(error).__name__, "text": str(error)}
        found |= {"seconds": time.monotonic() - began, "beats": heart.beats}
    connections.settings["default"]["HOST"] = entry["HOST"]
    found["then"] = await Tag.objects.acount()
    return found


if __name__ == "__main__":
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    print(
        json.dumps(
            asyncio.new_event_loop().run_until_complete(main(json.loads(sys.argv[1]), sys.argv[2]))
        )
    )
    sys.stdout.flush()
    # Without the thread that may wait for the resolver still.
    os._exit(0)
