"""What users import, and that importing it does nothing else."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import nuages

PUBLIC = {
    "nuages.test": {
        "AsyncLiveServerTestCase",
        "AsyncLiveServerTransactionTestCase",
        "AsyncTestCase",
        "AsyncTransactionTestCase",
        "FaultProxy",
        "LiveServer",
        "forbid_blocking",
        "forbid_threads",
    },
    "nuages": {"on_loop", "off_loop", "__version__"},
    "nuages.db": {"aatomic", "aon_commit", "acursor", "hold_connection", "detached"},
    "nuages.db.migrations": {"Backfill"},
    "nuages.http": {"Event", "EventStream", "afile_response", "last_event_id", "request_timeout"},
    "nuages.management": {"AsyncBaseCommand", "Progress", "acall_command"},
    "nuages.mail": {"amail_admins", "amail_managers", "asend_mail", "asend_mass_mail"},
    "nuages.typing": {
        "AsyncEmailBackend",
        "AsyncEmailMessage",
        "AsyncFieldFile",
        "AsyncFile",
        "AsyncForm",
        "AsyncFormSet",
        "AsyncManager",
        "AsyncModel",
        "AsyncModelForm",
        "AsyncModelFormSet",
        "AsyncQueriesContext",
        "AsyncQuerySet",
        "AsyncRawQuerySet",
        "AsyncStorage",
        "Manager",
        "QuerySet",
    },
    "nuages.asgi": {"get_asgi_application", "on_shutdown", "on_startup"},
}

DJANGOS_OWN = {("nuages.typing", "Manager"), ("nuages.typing", "QuerySet")}
"""What is Django's at run time, and only for type checkers more than that."""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    assert set(import_module(module).__all__) == PUBLIC[module]


@pytest.mark.parametrize(("module", "name"), [(m, n) for m in PUBLIC for n in sorted(PUBLIC[m])])
def test_every_public_name_is_there_and_documented(module: str, name: str) -> None:
    found: Any = getattr(import_module(module), name)
    if (module, name) in DJANGOS_OWN:
        assert found is getattr(import_module("django.db.models"), name)
    elif name != "__version__":
        assert callable(found)
        assert inspect.getdoc(found)
        assert not inspect.signature(found).parameters.keys() & {"args", "kwargs"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"nuages\.db.*no_such_name"):
        import_module("nuages.db").no_such_name  # noqa: B018
    with pytest.raises(ImportError):
        exec("from nuages.db import no_such_name")


def test_the_version_is_the_distributions() -> None:
    assert nuages.__version__ == version("nuages")


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(nuages.__file__).parent / "py.typed").is_file()


def test_importing_it_has_no_side_effects() -> None:
    """Neither settings nor threads, loops, patches or drivers."""
    code = """
        import asyncio, os, sys, threading
        import asgiref.sync, django.db, django.db.models, django.db.transaction
        from django.conf import settings

        enter = django.db.transaction.Atomic.__enter__
        call = asgiref.sync.AsyncToSync.__call__
        environment = dict(os.environ)
        import nuages
        import nuages.bridge
        import nuages.db

        assert not settings.configured
        assert threading.active_count() == 1
        assert asyncio._get_running_loop() is None
        assert django.db.transaction.Atomic.__enter__ is enter
        assert asgiref.sync.AsyncToSync.__call__ is call
        assert django.db.models.query.sync_to_async is asgiref.sync.sync_to_async
        assert dict(os.environ) == environment
        assert not {"psycopg", "uvloop", "nuages.seams"} & set(sys.modules)
    """
    assert python(code) == ""


def test_on_loop_works_without_a_project() -> None:
    code = """
        import asyncio
        from django.conf import settings
        from nuages import off_loop, on_loop
        from nuages.bridge import await_

        @on_loop
        def call():
            await_(asyncio.sleep(0))
            return off_loop(lambda: "in a thread")()

        print(asyncio.run(call()), settings.configured)
    """
    assert python(code) == "in a thread False\n"


def test_the_names_of_nuages_db_can_be_imported_before_django_is_set_up() -> None:
    code = """
        from django.conf import settings
        from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
        from nuages.asgi import get_asgi_application
        print(settings.configured)
    """
    assert python(code) == "False\n"
