"""Make three tenants, serve them concurrently, and fail where one gets another's."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import django

NAMES = ["red", "green", "blue"]
ROUNDS = 6


def prepare() -> None:
    """Make the tenants' schemas, with a note in each and one in the public schema."""
    from django.core.management import call_command
    from django.db import connection
    from django_tenants.utils import schema_context

    from tests.tenants.customers.models import Client, Domain
    from tests.tenants.notes.models import Note

    call_command("migrate_schemas", schema_name="public", verbosity=0, interactive=False)
    for name in NAMES:
        tenant = Client(schema_name=name)
        tenant.save(verbosity=0)
        Domain.objects.create(domain=f"{name}.test", tenant=tenant, is_primary=True)
        with schema_context(name):
            Note.objects.create(text=f"of {name}")
    connection.set_schema_to_public()
    with connection.schema_editor() as editor:
        editor.create_model(Note)
    Note.objects.create(text="of public")
    connection.close()


def check(name: str, content: bytes, kind: str) -> None:
    """See that all that a view found is its tenant's."""
    if kind == "stream":
        assert content.decode() == f"of {name},of {name}", (name, content)
        return
    schema, *found = json.loads(content)["found"]
    assert schema == name, (name, schema)
    assert set(found) == {f"of {name}"}, (name, kind, found)


async def serve() -> None:
    """Serve every view to every tenant at once, in rounds."""
    from nuages.asgi.handler import ASGIHandler
    from tests.integration.asgi_client import fetch

    application = ASGIHandler()

    async def ask(name: str, kind: str, number: int) -> None:
        url = f"/{kind}?mark={kind} {number}"
        answer = await fetch(application, url, headers={"Host": f"{name}.test"})
        assert answer.status == 200, answer
        check(name, answer.content, kind)

    async with asyncio.timeout(100):
        await asyncio.gather(
            *(
                ask(name, kind, number)
                for number in range(ROUNDS)
                for kind in ("async", "sync", "loop", "stream")
                for name in NAMES
            )
        )


def serve_wsgi() -> None:
    """Serve one after another, on one connection of this thread."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import RequestFactory

    application = WSGIHandler()
    for number in range(2):
        for kind in ("async", "sync", "loop"):
            for name in NAMES:
                statuses: list[Any] = []
                url = f"/{kind}?mark=wsgi {kind} {number}"
                environ = RequestFactory(SERVER_NAME=f"{name}.test").get(url).environ
                response = application(environ, lambda status, *_: statuses.append(status))  # noqa: B023
                content = b"".join(response)
                response.close()  # type: ignore[attr-defined]
                assert statuses == ["200 OK"], (statuses, content)
                check(name, content, kind)


if __name__ == "__main__":
    django.setup()
    if "prepare" in sys.argv:
        prepare()
    asyncio.run(serve())
    serve_wsgi()
    print("served")
