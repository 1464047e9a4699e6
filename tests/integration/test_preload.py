"""Session and user in async views: readable, and the answer is what stock Django's would be.

Each body of preload_site.py runs twice on equal states: as stock has it (a sync view, or an async
one with preloading off where it uses the `a*` methods), and in an async view with preloading.
Status, what the view saw, Vary, the cookie and what is stored afterwards must be equal.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.contrib.sessions.backends.file import SessionStore as FileStore
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.exceptions import SynchronousOnlyOperation
from django.db import OperationalError
from django.test import AsyncClient, override_settings
from django.utils import timezone

from nuages import on_loop
from nuages.asgi import get_asgi_application
from nuages.db.pool.pool import open_pools
from nuages.handling.preload import preload
from tests.integration import preload_site
from tests.integration.conftest import Run

SITE = {
    "ROOT_URLCONF": "tests.integration.preload_site",
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
    "SECRET_KEY": "the secret",
    "SECRET_KEY_FALLBACKS": ["an old secret"],
}
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
COOKIES = [
    *("none", "anonymous", "user", "short", "unknown", "expired", "corrupt"),
    *("other password", "no hash", "old secret", "gone user", "odd user", "odd backend"),
]

CASES = [
    pytest.param(engine, kind, every, id=f"{engine}-{kind}{'-save every request' * every}")
    for engine in ENGINES
    for every in (False, True)
    for kind in (("anonymous", "user", "expired", "old secret") if every else COOKIES)
    # Signed cookies know no expiry of their own (Django ticket #19201).
    if (engine, kind) != ("signed_cookies", "expired")
]


@pytest.fixture(autouse=True)
def _site(tmp_path: Path) -> Iterator[None]:
    with override_settings(**SITE, SESSION_FILE_PATH=str(tmp_path)):
        _forget_the_folder()
        yield
        cache.clear()
    _forget_the_folder()


def _forget_the_folder() -> None:
    if "_storage_path" in vars(FileStore):
        del FileStore._storage_path


@pytest.fixture
def users(request: pytest.FixtureRequest) -> Iterator[None]:
    request.getfixturevalue("database" if "database" in request.fixturenames else "sqlite")
    for name in ("reader", "other"):
        User.objects.create_user(name, password="tell nobody")
    yield
    User.objects.all().delete()
    Session.objects.all().delete()


def store() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore


def data_of(kind: str) -> dict[str, Any]:
    """What the session of a cookie of this kind holds."""
    data: dict[str, Any] = {"cart": 3}
    if kind in ("none", "anonymous", "short", "unknown", "corrupt"):
        return data
    reader = User.objects.get(username="reader")
    data[SESSION_KEY] = {"gone user": "999999", "odd user": "x"}.get(kind, str(reader.pk))
    data[BACKEND_SESSION_KEY] = "no.such.Backend" if kind == "odd backend" else MODEL_BACKEND
    if kind != "no hash":
        secret = "an old secret" if kind == "old secret" else None
        data[HASH_SESSION_KEY] = reader._get_session_auth_hash(secret=secret)
    if kind == "other password":
        data[HASH_SESSION_KEY] = data[HASH_SESSION_KEY][::-1]
    return data


def cookie_of(kind: str) -> str | None:
    """Make a session of this kind and return the cookie's value."""
    if kind == "none":
        return None
    if kind in ("short", "unknown"):
        return "abc" if kind == "short" else "0123456789abcdef0123456789abcdef"
    session = store()()
    session.update(data_of(kind))
    if kind == "expired":
        session.set_expiry(timezone.now() - timedelta(days=1))
    session.save()
    key: str = session.session_key
    if kind == "expired" and settings.SESSION_ENGINE.endswith("db"):
        Session.objects.filter(pk=key).update(expire_date=timezone.now())
        cache.clear()
    if kind == "corrupt":
        if settings.SESSION_ENGINE.endswith("db"):
            Session.objects.filter(pk=key).update(session_data="rubbish")
            cache.clear()
        elif settings.SESSION_ENGINE.endswith("file"):
            Path(session._key_to_file()).write_text("rubbish")
        elif settings.SESSION_ENGINE.endswith("cookies"):
            key = key[:-3] + "xxx"
    return key


def stored(key: str | None) -> Any:
    """What the engine has under a key: None for nothing at all."""
    if not key:
        return None
    if settings.SESSION_ENGINE.endswith("cookies"):
        data = store()(key).load()
    elif not store()().exists(key):
        return None
    else:
        data = store()(key).load()
    return {name: value for name, value in data.items() if name != "_session_expiry"}


def outcome(response: Any, sent: str | None) -> dict[str, Any]:
    """Everything about an answer that must be as stock's is."""
    in_cookie = settings.SESSION_ENGINE.endswith("cookies")  # signed with the time it is made at
    morsel = response.cookies.get(settings.SESSION_COOKIE_NAME)
    key = morsel.value if morsel is not None else None
    cookie: Any = None
    if morsel is not None:
        cookie = {name: bool(morsel[name]) for name in ("max-age", "expires", "httponly", "path")}
        if not in_cookie:
            cookie["same key"] = key == sent
        cookie["deleted"] = not key
    try:
        saw = response.json()["saw"]
    except (KeyError, ValueError):
        saw = None
    return {
        "status": response.status_code,
        "saw": saw,
        "vary": response.headers.get("Vary"),
        "cookie": cookie,
        "stored": stored(key),
        "stored before": None if in_cookie or key == sent else stored(sent),
    }


async def ask(path: str, kind: str, preloading: bool = True) -> dict[str, Any]:
    sent = await on_loop(cookie_of)(kind)
    client = AsyncClient(raise_request_exception=False)
    if sent is not None:
        client.cookies[settings.SESSION_COOKIE_NAME] = sent
    with override_settings(NUAGES={"PRELOAD_SESSION": preloading}):
        response = await client.get(path)
    return await on_loop(outcome)(response, sent)  # type: ignore[no-any-return]


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
@pytest.mark.parametrize(("engine", "kind", "every"), CASES)
def test_an_async_view_answers_as_stock_does(
    users: None, run: Run, engine: str, kind: str, every: bool
) -> None:
    async def main() -> None:
        for body in (*preload_site.SYNC, *preload_site.ASYNC):
            sort = "sync" if body in preload_site.SYNC else "async"
            expected = await ask(f"/{sort}/{body}/", kind, preloading=False)
            if kind == "user":
                assert expected["status"] == (500 if body == "failing" else 200)
            assert (body, await ask(f"/async/{body}/", kind)) == (body, expected)
        for pool in open_pools():
            assert pool.stats()["used"] == 0
            pool.close()

    with override_settings(
        SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}",
        SESSION_SAVE_EVERY_REQUEST=every,
    ):
        run(main)


# Parts of it, looked at from nearby


def close_pools() -> None:
    for pool in open_pools():
        assert pool.stats()["used"] == 0
        pool.close()


def request_of(kind: str) -> Any:
    """A request as AuthenticationMiddleware leaves it; call it in a bridge."""
    from django.contrib.auth.middleware import AuthenticationMiddleware
    from django.contrib.sessions.middleware import SessionMiddleware
    from django.test import RequestFactory

    request: Any = RequestFactory().get("/")
    key = cookie_of(kind)
    if key is not None:
        request.COOKIES[settings.SESSION_COOKIE_NAME] = key
    SessionMiddleware(lambda r: None).process_request(request)  # type: ignore[arg-type]
    AuthenticationMiddleware(lambda r: None).process_request(request)  # type: ignore[arg-type]
    return request


def preloaded(kind: str) -> Any:
    request = request_of(kind)
    preload(request)
    return request


def test_through_our_handler_on_both_databases(database: str, users: None, run: Run) -> None:
    async def main() -> None:
        key = await on_loop(cookie_of)("user")
        transport = httpx.ASGITransport(get_asgi_application())
        cookies = {settings.SESSION_COOKIE_NAME: str(key)}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://site.test", cookies=cookies
        ) as http:
            answer = await http.get("/async/both/")
            assert answer.json() == {"saw": ["reader", True]}
            assert answer.headers["Vary"] == "Cookie"
            assert (await http.get("/async/read/")).json() == {"saw": 3}
            assert "Vary" not in (await http.get("/async/nothing/")).headers
        close_pools()

    run(main)


def test_the_view_itself_asks_nothing_of_the_database(users: None, run: Run) -> None:
    async def main() -> None:
        request = await on_loop(preloaded)("user")
        close_pools()
        assert not request.session.accessed
        assert request.session["cart"] == 3
        assert request.user.username == "reader"
        assert await request.auser() is request.user._wrapped
        assert not open_pools()

    run(main)


def test_switched_off_it_is_as_in_stock_django(users: None, run: Run) -> None:
    async def main() -> None:
        with override_settings(NUAGES={"PRELOAD_SESSION": False}):
            request = await on_loop(preloaded)("user")
        with pytest.raises(SynchronousOnlyOperation):
            request.session["cart"]
        with pytest.raises(SynchronousOnlyOperation):
            request.user.pk  # noqa: B018
        assert (await request.auser()).username == "reader"
        close_pools()

    run(main)


@pytest.mark.parametrize("kind", ["none", "short"])
def test_without_a_session_to_load_nothing_is_asked(users: None, run: Run, kind: str) -> None:
    async def main() -> None:
        request = await on_loop(preloaded)(kind)
        close_pools()
        assert request.user.is_anonymous
        assert not list(request.session.keys())
        assert not open_pools()

    run(main)


def test_a_request_without_session_is_left_alone() -> None:
    preload(SimpleNamespace(COOKIES={settings.SESSION_COOKIE_NAME: "x" * 32}))  # type: ignore[arg-type]


def test_a_user_of_another_middleware_is_left_alone(users: None, run: Run) -> None:
    async def main() -> None:
        request = await on_loop(request_of)("user")
        request.user = mine = AnonymousUser()
        await on_loop(preload)(request)
        assert request.user is mine
        assert request.session["cart"] == 3
        assert (await request.auser()).username == "reader"
        close_pools()

    run(main)


def test_what_is_loaded_already_is_not_loaded_again(
    users: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    load = DatabaseStore.load

    def counted(self: Any) -> Any:
        loads.append(self)
        return load(self)

    monkeypatch.setattr(DatabaseStore, "load", counted)

    async def main() -> None:
        request = await on_loop(request_of)("user")
        await on_loop(lambda: request.session["cart"])()
        await on_loop(preload)(request)
        await on_loop(preload)(request)
        assert request.user.username == "reader"
        assert len(loads) == 1
        close_pools()

    run(main)


def test_another_session_on_the_request_is_not_confused_with_it(users: None, run: Run) -> None:
    async def main() -> None:
        request = await on_loop(preloaded)("user")
        other = await on_loop(cookie_of)("anonymous")
        request.session = store()(other)
        assert (await request.auser()).is_anonymous
        assert await on_loop(lambda: request.user.is_anonymous)()
        close_pools()

    run(main)


def test_another_key_given_to_the_session_is_loaded_anew(users: None, run: Run) -> None:
    async def main() -> None:
        request = await on_loop(preloaded)("user")
        request.session._session_key = await on_loop(cookie_of)("anonymous")
        assert await request.session.aget(SESSION_KEY) is None
        assert (await request.session.aget("cart")) == 3
        close_pools()

    run(main)


def test_a_void_session_is_flushed_at_once_where_that_can_be_awaited(
    users: None, run: Run
) -> None:
    async def main() -> None:
        request = await on_loop(preloaded)("other password")
        key = request.session.session_key
        assert await on_loop(lambda: request.user.is_anonymous)()
        assert not await store()().aexists(key)
        close_pools()

    run(main)


def test_a_failing_database_raises_as_in_the_view(
    users: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        request = await on_loop(request_of)("user")

        def fail(self: Any) -> Any:
            raise OperationalError("the database is away")

        monkeypatch.setattr(DatabaseStore, "load", fail)
        with pytest.raises(OperationalError, match="away"):
            await on_loop(preload)(request)
        close_pools()

    run(main)


class OwnStore(DatabaseStore):
    """A user's engine that overrides how a session is loaded."""

    def load(self) -> Any:
        data = super().load()
        return data | {"loaded in": threading.current_thread() is threading.main_thread()}


SessionStore = OwnStore  # what SESSION_ENGINE looks for in a module


class OwnBackend(ModelBackend):
    """A user's backend that overrides how a user is found."""

    def get_user(self, user_id: Any) -> Any:
        user: Any = super().get_user(user_id)
        user.found_in = threading.current_thread() is threading.main_thread()
        return user


def test_engines_and_backends_of_users_load_in_threads(users: None, run: Run) -> None:
    async def main() -> None:
        key = await on_loop(cookie_of)("user")
        session = store()(key)
        own = f"{__name__}.OwnBackend"
        await session.aupdate({BACKEND_SESSION_KEY: own})
        await session.asave()
        with override_settings(AUTHENTICATION_BACKENDS=[own]):
            request = await on_loop(request_of)("none")
            request.COOKIES[settings.SESSION_COOKIE_NAME] = key
            request.session = store()(key)
            await on_loop(preload)(request)
            assert request.session["loaded in"] is False
            assert request.user.found_in is False
            assert request.user.username == "reader"
        close_pools()

    with override_settings(SESSION_ENGINE=__name__):
        run(main)


@pytest.mark.parametrize("run", ["asyncio"], indirect=True)  # uvloop's loop cannot be counted
def test_djangos_own_load_without_a_thread(
    users: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        request = await on_loop(request_of)("user")
        used: list[Any] = []
        loop = asyncio.get_running_loop()
        submit = loop.run_in_executor
        monkeypatch.setattr(
            loop,
            "run_in_executor",
            lambda *args: used.append(args) or submit(*args),
        )
        await on_loop(preload)(request)
        assert request.user.username == "reader"
        assert used == []
        close_pools()

    run(main)
