"""The public names are known, and no others."""

from __future__ import annotations

import nuages
import nuages.db
import nuages.http
import nuages.mail
import nuages.test
from nuages import no_such_name  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.asgi import a  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.asgi import get_asgi_application, on_shutdown, on_startup
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.db import b  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.db.migrations import Backfill
from nuages.db.migrations import c  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.http import Event, EventStream, afile_response, last_event_id, request_timeout
from nuages.http import d  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.mail import amail_admins, amail_managers, asend_mail, asend_mass_mail
from nuages.mail import e  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.management import AsyncBaseCommand, Progress, acall_command
from nuages.management import f  # error: mypy attr-defined, pyright reportAttributeAccessIssue
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
from nuages.test import g  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.typing import AsyncModel
from nuages.typing import h  # error: mypy attr-defined, pyright reportAttributeAccessIssue

version: str = nuages.__version__

nuages.db.aatomicc  # error: mypy attr-defined, pyright reportAttributeAccessIssue
nuages.http.event_stream  # error: mypy attr-defined, pyright reportAttributeAccessIssue
