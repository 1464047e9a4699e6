"""No other names are known."""

from __future__ import annotations

import nuages.db
from nuages import a  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.asgi import b  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.db import c  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.db.migrations import d  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.http import e  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.mail import f  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.management import g  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.test import h  # error: mypy attr-defined, pyright reportAttributeAccessIssue
from nuages.typing import i  # error: mypy attr-defined, pyright reportAttributeAccessIssue

nuages.db.aatomicc  # error: mypy attr-defined, pyright reportAttributeAccessIssue
