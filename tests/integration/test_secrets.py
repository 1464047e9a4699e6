"""A password is in no error, no log, no repr and no page, however connecting fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from django.core.cache import caches
from django.core.mail import get_connection
from django.db import DatabaseError, connection
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.views.debug import ExceptionReporter

from nuages import on_loop
from nuages.asgi import get_asgi_application
from nuages.cache.loops import open_clients
from nuages.db.pool.pool import open_pools
from nuages.tracebacks import hide_frames
from tests import services
from tests.integration.asgi_tools import exchange
from tests.integration.conftest import Run, close_thread_connection
from tests.integration.mail_tools import OLD_SETTINGS, check_password, mail_server
from tests.integration.pool_tools import proxy_before
from tests.integration.scope_tools import receiving
from tests.library.models import Author
from tests.services import free_port

pytestmark = OLD_SETTINGS

CANARY = "Canary7gq9"
PASSWORD = f"it's \\ \"{CANARY}@:/%s?#"
"""With what drivers quote, escape and split at."""
USER = f"nuages_canary_{os.getpid()}"

FAULTS = ["wrong password", "refused", "no such host", "silent"]


async def native(request: HttpRequest) -> HttpResponse:
    await Author.objects.acount()
    return HttpResponse()


@on_loop
def on_the_loop(request: HttpRequest) -> HttpResponse:
    Author.objects.count()
    return HttpResponse()


def threaded(request: HttpRequest) -> HttpResponse:
    Author.objects.count()
    return HttpResponse()


async def cached(request: HttpRequest) -> HttpResponse:
    await caches["default"].aget("key")
    return HttpResponse()


async def mailed(request: HttpRequest) -> HttpResponse:
    await on_loop(get_connection().open)()
    return HttpResponse()


class Site:
    """A URLconf."""

    urlpatterns = [
        path("native/", native),
        path("loop/", on_the_loop),
        path("thread/", threaded),
        path("cached/", cached),
        path("mailed/", mailed),
    ]


def shown(error: BaseException) -> Iterator[str]:
    """What error reports make of it: the text, the page of DEBUG, the mail to admins."""
    hide_frames(error, (__name__,))  # the test knows the password, of course
    yield "".join(traceback.format_exception(error))
    for debug in (True, False):
        with override_settings(DEBUG=debug):
            reporter = ExceptionReporter(None, type(error), error, error.__traceback__)
            yield reporter.get_traceback_html()
            yield reporter.get_traceback_text()


class Records(logging.Handler):
    """Everything that is logged, as a file would have it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def logged() -> Iterator[Records]:
    handler, root = Records(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(before)
    root.removeHandler(handler)


def secret(text: str) -> None:
    """Fail where the password is in `text`, without showing all of it."""
    if (place := text.find(CANARY)) >= 0:
        pytest.fail(f"...{text[max(0, place - 400) : place + 40]}...")


@contextlib.asynccontextmanager
async def fault(name: str, entry: dict[str, Any]) -> AsyncIterator[None]:
    """Make connecting to a database's or cache's server fail."""
    if name == "refused":
        entry["PORT"] = str(free_port())
    elif name == "no such host":
        entry["HOST"] = "no-such-host.invalid"
    elif name == "silent":
        async with proxy_before(entry) as proxy:
            proxy.stall()
            entry |= {"HOST": "127.0.0.1", "PORT": str(proxy.port)}
            yield
        return
    yield


@pytest.fixture
def asked_for_passwords(postgresql: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """PostgreSQL, which trusts everybody, with a user that it does not trust."""
    with psycopg.connect(
        host=postgresql["HOST"], port=postgresql["PORT"], user=postgresql["USER"],
        dbname=postgresql["NAME"], autocommit=True,
    ) as admin:  # fmt: skip

        def rules(lines: list[str]) -> None:
            admin.execute("CREATE TEMP TABLE hba (n serial, line text)")
            admin.cursor().executemany(
                "INSERT INTO hba (line) VALUES (%s)", [[line] for line in lines]
            )
            ((file,),) = admin.execute("SHOW hba_file").fetchall()
            copy = psycopg.sql.SQL(
                "COPY (SELECT line FROM hba ORDER BY n) TO {} "
                "(FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')"
            )
            admin.execute(copy.format(psycopg.sql.Literal(file)))
            admin.execute("DROP TABLE hba")
            admin.execute("SELECT pg_reload_conf()")

        ((before,),) = admin.execute("SELECT pg_read_file(current_setting('hba_file'))").fetchall()
        admin.execute(f"CREATE ROLE {USER} LOGIN PASSWORD 'another'")
        rules([f"host all {USER} all scram-sha-256", *before.splitlines()])
        yield postgresql
        rules(before.splitlines())
        close_thread_connection()
        admin.execute(f"DROP ROLE {USER}")


@pytest.fixture
def failing_postgresql(asked_for_passwords: dict[str, Any]) -> dict[str, Any]:
    asked_for_passwords |= {"USER": USER, "PASSWORD": PASSWORD}
    # Seconds; libpq takes two at least.
    asked_for_passwords["OPTIONS"] |= {"connect_timeout": 2, "pool": {"reconnect_timeout": 0}}
    return asked_for_passwords


@pytest.fixture
def failing_mysql(
    mysql: dict[str, Any], mysql_server: services.MySQLServer
) -> Iterator[dict[str, Any]]:
    with mysql_server.connect() as admin:
        admin.cursor().execute(f"CREATE USER {USER} IDENTIFIED BY 'another'")
    mysql |= {"USER": USER, "PASSWORD": PASSWORD}
    mysql["OPTIONS"] |= {"connect_timeout": 2, "pool": {"reconnect_timeout": 0}}
    yield mysql
    close_thread_connection()
    with mysql_server.connect() as admin:
        admin.cursor().execute(f"DROP USER {USER}")


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("server", ["failing_postgresql", "failing_mysql"])
def test_databases(
    request: pytest.FixtureRequest, server: str, name: str, logged: Records
) -> None:
    entry = request.getfixturevalue(server)

    async def main() -> None:
        async with fault(name, entry):
            with pytest.raises(DatabaseError) as caught:
                await Author.objects.acount()
            for text in shown(caught.value):
                secret(text)
            # A silent server costs its timeout each time.
            silent = name == "silent"
            for debug in (True,) if silent else (True, False):
                with override_settings(DEBUG=debug, ROOT_URLCONF=Site):
                    application = get_asgi_application()
                    for view in ("native",) if silent else ("native", "loop", "thread"):
                        answer = await exchange(application, f"/{view}/")
                        assert answer.status == 500
                        assert ("Traceback" in answer.text) is debug
                        secret(answer.text)
            for pool in open_pools():
                secret(repr(pool) + repr(vars(pool)))

    asyncio.run(main())
    with pytest.raises(DatabaseError) as caught:
        if name != "silent":
            connection.ensure_connection()
        raise DatabaseError
    for text in shown(caught.value):
        secret(text)
    assert logged.lines
    secret("\n".join(logged.lines))


def test_hosts_that_fail_in_turn(
    failing_postgresql: dict[str, Any], run: Run, logged: Records
) -> None:
    """Our own loop over several hosts makes a message of its own."""
    failing_postgresql |= {"HOST": "127.0.0.1,127.0.0.1", "PORT": f"{free_port()},{free_port()}"}

    async def main() -> None:
        with pytest.raises(DatabaseError, match="Multiple connection attempts") as caught:
            await Author.objects.acount()
        for text in shown(caught.value):
            secret(text)

    run(main)
    secret("\n".join(logged.lines))


def test_a_killed_session_says_nothing(
    failing_mysql: dict[str, Any], run: Run, logged: Records, mysql_server: services.MySQLServer
) -> None:
    """A statement that is cancelled while the server lets nobody in any more."""
    quoted = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    with mysql_server.connect() as admin, admin.cursor() as cursor:
        cursor.execute(f"ALTER USER {USER} IDENTIFIED BY '{quoted}'")
        cursor.execute(f"GRANT ALL ON `{failing_mysql['NAME']}`.* TO {USER}")

    async def main() -> None:
        assert await Author.objects.acount() == 0
        sleeping = asyncio.create_task(on_loop(_sleep)())
        with mysql_server.connect() as admin, admin.cursor() as cursor:
            found = 0
            while not found:
                await asyncio.sleep(0)
                cursor.execute(
                    "SELECT count(*) FROM information_schema.processlist "
                    "WHERE user = %s AND info LIKE '%%SLEEP%%'", [USER],
                )  # fmt: skip
                ((found,),) = cursor.fetchall()
            cursor.execute(f"ALTER USER {USER} IDENTIFIED BY 'another'")
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await sleeping
        for text in shown(caught.value):
            secret(text)

    run(main)
    assert any("could not be cancelled" in line for line in logged.lines)
    secret("\n".join(logged.lines))


def test_the_password_of_a_tls_key(failing_mysql: dict[str, Any], run: Run) -> None:
    failing_mysql["OPTIONS"]["ssl"] = {"ca": "/no/ca.pem", "password": PASSWORD}

    async def main() -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await Author.objects.acount()
        for text in shown(caught.value):
            secret(text)

    run(main)


def _sleep() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(600)")


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("kind", ["option", "url", "sentinel"])
def test_redis(valkey_url: str, name: str, kind: str, logged: Records) -> None:
    port = int(valkey_url.rpartition(":")[2].partition("/")[0])
    place: dict[str, Any] = {"HOST": "127.0.0.1", "PORT": port}
    escaped = "it%27s%20" + CANARY

    async def main() -> None:
        async with fault(name, place):
            where = f"{place['HOST']}:{place['PORT']}"
            options: dict[str, Any] = {"socket_timeout": 0.2, "socket_connect_timeout": 0.2}
            location = f"redis://{where}/0"
            if kind == "option":
                options |= {"username": "user", "password": PASSWORD}
            elif kind == "url":
                location = f"redis://user:{escaped}@{where}/0"
            else:
                location = f"redis+sentinel://user:{escaped}@{where}/mymaster/0"
                options["sentinel"] = {"password": PASSWORD}
            entry = {
                "BACKEND": "nuages.cache.redis.RedisCache",
                "LOCATION": location,
                "OPTIONS": options,
            }
            with override_settings(CACHES={"default": entry}, ROOT_URLCONF=Site):
                application = get_asgi_application()
                with pytest.raises(Exception) as caught:  # noqa: PT011 - redis-py's, several kinds
                    await caches["default"].aget("key")
                for debug in (True, False):
                    with override_settings(DEBUG=debug):
                        answer = await exchange(application, "/cached/")
                        assert answer.status == 500
                        # Django's page shows the settings, LOCATION in full.
                        if kind == "option":
                            secret(answer.text)
                for client in open_clients():
                    secret(repr(client) + repr(client.config) + repr(client.pools()))
        with override_settings(CACHES={}):
            for text in shown(caught.value):
                secret(text)

    asyncio.run(main())
    secret("\n".join(logged.lines))


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_smtp(run: Run, logged: Records) -> None:
    """A server that refuses the login."""

    async def main() -> None:
        with pytest.raises(OSError, match="535") as caught:
            await on_loop(get_connection().open)()
        for text in shown(caught.value):
            secret(text)
        with override_settings(DEBUG=True, ROOT_URLCONF=Site):
            answer = await exchange(get_asgi_application(), "/mailed/")
        assert answer.status == 500
        secret(answer.text)

    with mail_server(
        auth_required=True, auth_require_tls=False, authenticator=check_password
    ) as box, override_settings(
        EMAIL_BACKEND="nuages.mail.smtp.EmailBackend", EMAIL_HOST="127.0.0.1",
        EMAIL_PORT=box.port, EMAIL_HOST_USER="user", EMAIL_HOST_PASSWORD=PASSWORD,
    ):  # fmt: skip
        run(main)
    # The server's own log is not ours.
    secret("\n".join(line for line in logged.lines if not line.startswith("mail.")))


@pytest.mark.parametrize(
    "location",
    [
        f"redis://user:{CANARY}@host:port/0",
        f"redis://user:pass/{CANARY}@host:6379/0",
        f"redis://user:pass@{CANARY}@host:6379/zero",
        f"redis://:{CANARY}/x@host",
        f"redis://host/zero?password={CANARY}",
        f"http://user:{CANARY}@host/0",
        f"redis+sentinel://user:{CANARY}@host:port/mymaster",
        f"redis+sentinel://user:pass/{CANARY}@host/mymaster/0",
        f"redis+cluster://user:{CANARY}@host/zero",
        [f"redis://user:{CANARY}@host/0", f"redis+cluster://user:{CANARY}@host"],
    ],
)
def test_a_location_that_is_wrong(location: Any) -> None:
    from nuages.checks import check_caches

    entry = {"BACKEND": "nuages.cache.redis.RedisCache", "LOCATION": location}
    with override_settings(CACHES={"default": entry}):
        (found,) = check_caches(None)
    secret(str(found))


def test_frames_of_the_project_stay(postgresql: dict[str, Any], run: Run) -> None:
    """What a receiver raises while a connection is opened is found where it was raised."""

    def fails(**kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT no_such_column")

    async def main() -> None:
        with receiving(connection_created, fails), pytest.raises(DatabaseError) as caught:
            await Author.objects.acount()
        lines = traceback.format_exception(caught.value)
        assert any("in fails" in line for line in lines)
        assert not any("get_new_connection" in line for line in lines)

    run(main)
