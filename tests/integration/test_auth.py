"""Auth on the loop: without a thread for Django's own code, in one for what the project adds."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import auth
from django.contrib.auth import hashers
from django.contrib.auth.backends import BaseBackend, ModelBackend, RemoteUserBackend
from django.contrib.auth.decorators import (
    login_required,
    permission_required,
    user_passes_test,
)
from django.contrib.auth.mixins import PermissionRequiredMixin
from django.contrib.auth.models import AnonymousUser, Group, Permission, User
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings
from django.urls import path
from django.views.generic import TemplateView

from nuages import on_loop
from nuages.asgi.handler import ASGIHandler
from tests.integration.asgi_client import fetch, where
from tests.integration.conftest import Counts, Run
from tests.integration.handoff_tools import THREAD, WHERE
from tests.integration.scope_tools import pool_stats, receiving

ENGINES = "django.contrib.sessions.backends"


class Plain(hashers.BasePasswordHasher):
    """Compares, and notes its thread: a hasher that costs nothing."""

    algorithm = "plain"

    def encode(self, password: str, salt: str) -> str:
        WHERE.note()
        return f"plain$${password}"

    def verify(self, password: str, encoded: str) -> bool:
        WHERE.note()
        return encoded == f"plain$${password}"

    def decode(self, encoded: str) -> dict[str, Any]:
        return {"algorithm": "plain", "salt": "", "hash": encoded}

    def safe_summary(self, encoded: str) -> dict[str, Any]:
        return {}

    def must_update(self, encoded: str) -> bool:
        return False

    def harden_runtime(self, password: str, encoded: str) -> None:
        WHERE.note()


@pytest.fixture(autouse=True)
def _hasher() -> Iterator[None]:
    with override_settings(PASSWORD_HASHERS=[f"{__name__}.Plain"]):
        yield
    WHERE.take()


@pytest.fixture
def ada(postgresql: Any) -> Iterator[User]:
    """A user with one permission of her own and one by her group."""
    user = User.objects.create_user("Ada", password="secret")
    add, change = (Permission.objects.get(codename=f"{n}_tag") for n in ("add", "change"))
    user.user_permissions.add(add)
    group = Group.objects.create(name="changers")
    group.permissions.add(change)
    user.groups.add(group)
    WHERE.take()
    yield user
    group.delete()


def new_request(engine: str = "db") -> Any:
    """A request as middleware leaves it, with an empty session."""
    request: Any = RequestFactory().get("/")
    request.session = importlib.import_module(f"{ENGINES}.{engine}").SessionStore()

    async def auser() -> Any:
        return await auth.aget_user(request)

    request.auser = auser
    request.user = AnonymousUser()
    return request


# Functions and methods


async def log_in_and_out(threads: Counts) -> None:
    """Every a* function of django.contrib.auth, in the order of a visit."""
    request = new_request()
    user = await User.objects.aget(username="Ada")
    user.backend = settings.AUTHENTICATION_BACKENDS[0]
    await auth.alogin(request, user)
    assert await auth.aget_user(request) == user
    assert (await User.objects.aget(username="Ada")).last_login is not None
    key = request.session.session_key
    await auth.aupdate_session_auth_hash(request, user)
    assert request.session.session_key != key
    assert await auth.aget_user(request) == user
    await auth.alogout(request)
    assert not (await auth.aget_user(request)).is_authenticated
    assert await auth.aauthenticate(request, username="Ada") is None


async def ask_permissions(threads: Counts) -> None:
    user = await User.objects.aget(username="Ada")
    app = "library"
    assert await user.ahas_perm(f"{app}.add_tag")
    assert await user.ahas_perms([f"{app}.add_tag", f"{app}.change_tag"])
    assert not await user.ahas_perm(f"{app}.delete_tag")
    assert await user.ahas_module_perms(app)
    assert await user.aget_user_permissions() == {f"{app}.add_tag"}
    assert await user.aget_group_permissions() == {f"{app}.change_tag"}
    assert await user.aget_all_permissions() == {f"{app}.add_tag", f"{app}.change_tag"}
    backend = ModelBackend()
    assert await backend.ahas_perm(user, f"{app}.add_tag")
    assert await backend.aget_user(user.pk) == user
    base = BaseBackend()
    assert await base.aget_all_permissions(user) == set()
    assert await base.aget_user(user.pk) is None
    assert await base.aauthenticate(None) is None


async def remote_user(threads: Counts) -> None:
    assert await RemoteUserBackend().aauthenticate(None, remote_user="Ada") is not None


async def passwords(threads: Counts) -> None:
    """These hash, in threads; nothing else of them is there."""
    assert await auth.aauthenticate(username="Ada", password="secret") is not None
    assert await auth.aauthenticate(username="Nobody", password="secret") is None
    user = await User.objects.acreate_user("Grace", password="secret")
    assert await user.acheck_password("secret")
    assert WHERE.on_loop == [False] * 4
    assert len([s for s in threads.submitted if s.startswith("ThreadPoolExecutor")]) == 4
    threads.clear()


@pytest.mark.parametrize("work", [log_in_and_out, ask_permissions, remote_user, passwords])
def test_no_thread_is_used(
    ada: User, run: Run, threads: Counts, work: Callable[[Counts], Awaitable[None]]
) -> None:
    async def main() -> None:
        threads.clear()
        await work(threads)
        threads.assert_none()
        await sync_to_async(int)()  # the control
        assert threads.submitted

    run(main)


class Directory(BaseBackend):
    """The project's, sync only."""

    def note(self) -> None:
        WHERE.note()

    def authenticate(self, request: Any, name: str = "", **kwargs: Any) -> Any:
        self.note()
        return User(username=name, pk=1)

    def get_user(self, user_id: Any) -> Any:
        self.note()
        return User(username="found", pk=user_id)

    def get_user_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        self.note()
        return {"app.one"}

    def get_group_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        self.note()
        return {"app.two"}


@pytest.mark.parametrize("mode", ["thread", "loop"])
def test_the_projects_backend_is_asked_in_threads(sqlite: Any, run: Run, mode: str) -> None:
    """Even where sync code of the project runs on the loop: a backend asks another server."""

    async def main() -> None:
        user = await auth.aauthenticate(name="Ada")
        assert WHERE.take() == THREAD
        assert await user.aget_all_permissions() == {"app.one", "app.two"}
        assert await user.ahas_perm("app.one")
        assert WHERE.take() == THREAD
        assert (await auth.load_backend(user.backend).aget_user(7)).pk == 7
        assert WHERE.take() == THREAD

    backends = [f"{__name__}.Directory"]
    with override_settings(AUTHENTICATION_BACKENDS=backends, NUAGES={"SYNC_VIEWS": mode}):
        run(main)


class Configuring(RemoteUserBackend):
    def configure_user(self, request: Any, user: Any, created: bool = True) -> Any:
        WHERE.note()
        user.last_name = "configured"
        return user


def test_a_hook_of_the_projects_in_djangos_backend(ada: User, run: Run) -> None:
    async def main() -> None:
        user = await Configuring().aauthenticate(None, remote_user="Ada")
        assert user is not None
        assert user.last_name == "configured"
        assert WHERE.take() == THREAD
        assert pool_stats()["used"] == 0

    run(main)


def test_receivers_of_auth_signals(ada: User, run: Run) -> None:
    """Django's own needs no thread; an async one of the project's is awaited on the loop."""
    seen: list[tuple[str, str]] = []

    async def logged_in(user: User, **named: Any) -> None:
        seen.append(((await User.objects.aget(pk=user.pk)).username, where()))

    async def failed(credentials: Any, **named: Any) -> None:
        seen.append((credentials["password"][:3], where()))

    async def main() -> None:
        seen.clear()
        with receiving(user_logged_in, logged_in), receiving(user_login_failed, failed):
            user = await auth.aauthenticate(username="Ada", password="secret")
            assert user is not None
            await auth.alogin(new_request(), user)
            assert await auth.aauthenticate(username="Ada", password="wrong") is None
        assert seen == [("Ada", "loop"), ("***", "loop")]

    run(main)


# Decorators, middleware, mixins


def sync_test(user: Any) -> bool:
    WHERE.note()
    return bool(user.username == "Ada")


async def async_test(user: Any) -> bool:
    WHERE.note()
    return bool((await User.objects.aget(pk=user.pk)).username == "Ada") if user.pk else False


def sync_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(where())


async def async_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(where())


class Permitted(PermissionRequiredMixin, TemplateView):
    permission_required = ("library.add_tag", "library.change_tag")
    raise_exception = True

    def render_to_response(self, context: Any, **kwargs: Any) -> HttpResponse:
        return HttpResponse(where())


DECORATORS: dict[str, Any] = {
    "login": login_required,
    "permission": permission_required("library.change_tag"),
    "sync_test": user_passes_test(sync_test),
    "async_test": user_passes_test(async_test),
}
# Where the project's test runs; Django's own needs no thread for its part.
TESTS_RUN = {
    ("sync_test", "async"): "thread",
    ("sync_test", "sync"): "thread",
    ("sync_test", "on_loop"): "loop",
    ("async_test", "async"): "loop",
    ("async_test", "sync"): "loop",
    ("async_test", "on_loop"): "loop",
}

urlpatterns = [
    path("open/", async_view),
    path("mixin/sync/", Permitted.as_view()),
    path("mixin/on_loop/", on_loop(Permitted.as_view())),
    *(
        path(f"{name}/{form}/", view)
        for name, decorate in DECORATORS.items()
        for form, view in {
            "async": decorate(async_view),
            "sync": decorate(sync_view),
            "on_loop": on_loop(decorate(sync_view)),
        }.items()
    ),
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


@pytest.fixture
def cookie(ada: User) -> Iterator[dict[str, str]]:
    """The header of a request of hers."""
    session = importlib.import_module(f"{ENGINES}.db").SessionStore()
    session[auth.SESSION_KEY] = str(ada.pk)
    session[auth.BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[auth.HASH_SESSION_KEY] = ada.get_session_auth_hash()
    session.save()
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=MIDDLEWARE):
        yield {"cookie": f"{settings.SESSION_COOKIE_NAME}={session.session_key}"}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *itertools.product(DECORATORS, ["async", "sync", "on_loop"]),
        *itertools.product(["mixin"], ["sync", "on_loop"]),
    ],
)
def test_guards_of_views(
    cookie: dict[str, str], run: Run, threads: Counts, name: str, form: str
) -> None:
    """She is let in, others are not; no thread but where the project's sync code asks for one."""

    async def main() -> None:
        application = ASGIHandler()
        url = f"/{name}/{form}/"
        threads.clear()
        answer = await fetch(application, url, headers=cookie)
        assert (answer.status, answer.text) == (200, "thread" if form == "sync" else "loop")
        assert WHERE.take() == (
            {TESTS_RUN[name, form] == "loop"} if (name, form) in TESTS_RUN else set()
        )
        if form != "sync" and TESTS_RUN.get((name, form)) != "thread":
            threads.assert_none()
        else:
            assert threads.submitted
        assert (await fetch(application, url)).status == (403 if name == "mixin" else 302)
        assert pool_stats()["used"] == 0

    with override_settings(LOGIN_URL="/login/"):
        run(main)


def test_a_test_on_the_loop(cookie: dict[str, str], run: Run, threads: Counts) -> None:
    """By `@on_loop`, or by the mode, a sync test needs no thread and may query."""

    def querying(user: Any) -> bool:
        WHERE.note()
        return User.objects.filter(pk=user.pk).exists()

    async def main() -> None:
        request = new_request()
        request.session["_auth_user_id"] = "0"
        request.auser = on_loop(lambda: User.objects.get(username="Ada"))
        threads.clear()
        for test in (on_loop(querying), querying):
            with override_settings(NUAGES={"SYNC_VIEWS": "loop"}):
                answer = await user_passes_test(test)(async_view)(request)
            assert answer.content == b"loop"
            assert WHERE.take() == {True}
        threads.assert_none()

    run(main)


def test_login_required_middleware(cookie: dict[str, str], run: Run, threads: Counts) -> None:
    async def main() -> None:
        application = ASGIHandler()
        threads.clear()
        assert (await fetch(application, "/open/", headers=cookie)).text == "loop"
        answer = await fetch(application, "/open/")
        assert (answer.status, answer.headers["location"]) == (302, "/login/?next=/open/")
        threads.assert_none()

    guarded = [*MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    with override_settings(MIDDLEWARE=guarded, LOGIN_URL="/login/"):
        run(main)


def test_a_test_in_a_thread_that_is_cancelled(cookie: dict[str, str], run: Run) -> None:
    """The request waits for its thread, as for a view's."""
    go = threading.Event()
    ended: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        go.clear()
        ended.clear()
        begun = asyncio.Event()

        def blocking(user: Any) -> bool:
            loop.call_soon_threadsafe(begun.set)
            assert go.wait(20)
            ended.append("test")
            return True

        request = new_request()
        request.auser = on_loop(lambda: User.objects.get(username="Ada"))
        task = asyncio.create_task(user_passes_test(blocking)(async_view)(request))
        await begun.wait()
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["test"]

    run(main)
