"""The public names are known."""

from __future__ import annotations

import nuages
from nuages.asgi import get_asgi_application, on_shutdown, on_startup
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.db.migrations import Backfill
from nuages.http import Event, EventStream, afile_response, last_event_id, request_timeout
from nuages.mail import amail_admins, amail_managers, asend_mail, asend_mass_mail
from nuages.management import AsyncBaseCommand, Progress, acall_command
from nuages.test import (
    AsyncLiveServerTestCase,
    AsyncLiveServerTransactionTestCase,
    AsyncTestCase,
    AsyncTransactionTestCase,
    FaultProxy,
    LiveServer,
    forbid_blocking,
    forbid_threads,
)
from nuages.typing import AsyncModel

version: str = nuages.__version__
