"""django-tenants, the real package, on our engine: nobody is answered from another's schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests import services
from tests.tenants.__main__ import NAMES, ROUNDS

ROOT = Path(__file__).parents[2]
MODES: dict[str, Any] = {
    "thread": {},
    "loop": {"SYNC_VIEWS": "loop"},
    "request": {"CONNECTION_PER": "request"},
}


@pytest.fixture
def tenants_url(postgres_url: str) -> Iterator[str]:
    with services.fresh_database(postgres_url) as url:
        yield url


@pytest.mark.parametrize("limit", ["0", "1"], ids=["every cursor", "limited"])
@pytest.mark.parametrize("mode", MODES)
def test_every_tenant_is_served_from_its_own_schema(
    tenants_url: str, mode: str, limit: str
) -> None:
    """`limit` is TENANT_LIMIT_SET_CALLS: the search path is set once for a session."""
    parts = conninfo_to_dict(tenants_url)
    entry = {
        "ENGINE": "django_tenants.postgresql_backend",
        "NAME": parts["dbname"],
        "HOST": parts["host"],
        "PORT": parts.get("port", ""),
        "USER": parts["user"],
        "PASSWORD": parts.get("password", ""),
        # Fewer than requests: sessions go from one tenant to another.
        "OPTIONS": {"pool": {"max_size": 4}},
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.tenants", "prepare"],
        cwd=ROOT,
        env=os.environ
        | {
            "DJANGO_SETTINGS_MODULE": "tests.tenants.settings",
            "TENANTS_DATABASE": json.dumps(entry),
            "TENANTS_NUAGES": json.dumps(MODES[mode]),
            "TENANTS_LIMIT": limit,
        },
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("served")
    written = sorted(
        [f"{kind} {number}" for number in range(ROUNDS) for kind in ("async", "sync", "loop")]
        + [f"wsgi {kind} {number}" for number in range(2) for kind in ("async", "sync", "loop")]
    )
    with psycopg.connect(tenants_url) as judge:
        for name in NAMES:
            rows = judge.execute(f"SELECT text FROM {name}.notes_note WHERE text NOT LIKE 'of %'")
            assert sorted(text for (text,) in rows) == written, name
        (public,) = judge.execute("SELECT array_agg(text) FROM public.notes_note").fetchone() or ()
        assert public == ["of public"]
