"""Every place in django.contrib.auth that hashes does so in a thread, one a core at most."""

from __future__ import annotations

import ast
import asyncio
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin, auth
from django.contrib.auth import forms, hashers
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.handlers import modwsgi
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView, PasswordChangeView
from django.core.management import call_command
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path

from nuages import on_loop
from nuages.asgi.handler import ASGIHandler
from nuages.bridge.threads import in_thread
from nuages.handling import hashing
from tests.integration.asgi_client import post
from tests.integration.conftest import Run
from tests.integration.full_site import SITE, log_in
from tests.integration.handoff_tools import WHERE
from tests.integration.scope_tools import until

NEW = {"password1": "b4ttery-st4ple", "password2": "b4ttery-st4ple"}


class Noting(hashers.BasePasswordHasher):
    """Costs nothing and notes its thread; an outdated hash has one round, a new one two."""

    algorithm = "noting"

    def encode(self, password: str, salt: str, rounds: int = 2) -> str:
        WHERE.note()
        return f"noting${rounds}${password}"

    def verify(self, password: str, encoded: str) -> bool:
        WHERE.note()
        return encoded.split("$", 2)[2] == password

    def decode(self, encoded: str) -> dict[str, Any]:
        return {"algorithm": self.algorithm, "salt": "", "hash": encoded}

    def safe_summary(self, encoded: str) -> dict[str, Any]:
        return {}

    def must_update(self, encoded: str) -> bool:
        return encoded.split("$")[1] == "1"

    def harden_runtime(self, password: str, encoded: str) -> None:
        WHERE.note()
        HARDENED.append(encoded)


HARDENED: list[str] = []


@on_loop
def without_csrf(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        request._dont_enforce_csrf_checks = True
        return get_response(request)

    return middleware


urlpatterns = [
    path("login/", LoginView.as_view()),
    path("change/", PasswordChangeView.as_view(success_url="/")),
]
admin_site = admin.AdminSite()
admin_site.register(User, UserAdmin)
urlpatterns.append(path("admin/", admin_site.urls))


@pytest.fixture
def user(sqlite: Any) -> Iterator[User]:
    HARDENED.clear()
    site = {
        "ROOT_URLCONF": __name__,
        "PASSWORD_HASHERS": [f"{__name__}.Noting"],
        "MIDDLEWARE": [f"{__name__}.without_csrf", *SITE["MIDDLEWARE"]],
        "LOGIN_REDIRECT_URL": "/",
    }
    with override_settings(**SITE | site):
        ada = User.objects.create_superuser("Ada", "ada@site.test", "secret")
        WHERE.take()
        yield ada
        WHERE.take()


def is_valid(form: Any) -> Any:
    assert form.is_valid(), form.errors
    return form


def outdated() -> User:
    User.objects.filter(username="Ada").update(password="noting$1$secret")
    return User.objects.get(username="Ada")


def upgrade() -> None:
    assert outdated().check_password("secret")
    assert User.objects.get(username="Ada").password == "noting$2$secret"


def harden() -> None:
    assert not outdated().check_password("wrong")
    assert HARDENED == ["noting$1$secret"]


def usable(data: dict[str, str]) -> dict[str, str]:
    return data | {"usable_password": "true"}


def command_changepassword() -> None:
    from django.contrib.auth.management.commands import changepassword

    changepassword.Command._get_pass = lambda self, prompt="": "b4ttery-st4ple"
    try:
        call_command("changepassword", "Ada", verbosity=0, stdout=io.StringIO())
    finally:
        del changepassword.Command._get_pass


# What is called in a bridge, and how many hashes that is.
SYNC: dict[str, tuple[Callable[[], Any], int]] = {
    "make_password": (lambda: hashers.make_password("x"), 1),
    "check_password": (lambda: hashers.check_password("x", "noting$2$x"), 1),
    "an unknown algorithm": (lambda: hashers.check_password("x", "none$2$x"), 1),
    "set_password": (lambda: User().set_password("x"), 1),
    "upgrade": (upgrade, 2),
    "harden_runtime": (harden, 2),
    "create_user": (lambda: User.objects.create_user("Grace", password="x"), 1),
    "create_superuser": (lambda: User.objects.create_superuser("Grace", password="x"), 1),
    "authenticate": (lambda: auth.authenticate(username="Ada", password="secret"), 1),
    "no such user": (lambda: auth.authenticate(username="Nobody", password="secret"), 1),
    "UserCreationForm": (
        lambda: is_valid(forms.UserCreationForm({"username": "Grace", **NEW})).save(),
        1,
    ),
    "AdminUserCreationForm": (
        lambda: is_valid(forms.AdminUserCreationForm(usable({"username": "Grace", **NEW}))).save(),
        1,
    ),
    "AuthenticationForm": (
        lambda: is_valid(
            forms.AuthenticationForm(None, {"username": "Ada", "password": "secret"})
        ),
        1,
    ),
    "SetPasswordForm": (
        lambda: is_valid(
            forms.SetPasswordForm(
                User.objects.get(), {"new_password1": "b4ttery", "new_password2": "b4ttery"}
            )
        ).save(),
        1,
    ),
    "PasswordChangeForm": (
        lambda: is_valid(
            forms.PasswordChangeForm(
                User.objects.get(),
                {
                    "old_password": "secret",
                    "new_password1": "b4ttery",
                    "new_password2": "b4ttery",
                },
            )
        ).save(),
        2,
    ),
    "AdminPasswordChangeForm": (
        lambda: is_valid(forms.AdminPasswordChangeForm(User.objects.get(), usable(NEW))).save(),
        1,
    ),
    "modwsgi": (lambda: modwsgi.check_password({}, "Ada", "secret"), 1),
    "modwsgi, no such user": (lambda: modwsgi.check_password({}, "Nobody", "secret"), 1),
    "changepassword": (command_changepassword, 1),
    "createsuperuser": (
        lambda: call_command(
            "createsuperuser",
            interactive=False,
            username="Grace",
            email="g@site.test",
            verbosity=0,
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", SYNC)
def test_in_a_bridge(user: User, run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", "x")
    function, hashes = SYNC[name]
    run(on_loop(function))
    assert WHERE.on_loop == [False] * hashes


async def upgrade_in_a_coroutine() -> None:
    ada = await on_loop(outdated)()
    assert await ada.acheck_password("secret")
    assert (await User.objects.aget(username="Ada")).password == "noting$2$secret"


async def harden_in_a_coroutine() -> None:
    ada = await on_loop(outdated)()
    assert not await ada.acheck_password("wrong")
    assert HARDENED == ["noting$1$secret"]


ASYNC: dict[str, tuple[Callable[[], Any], int]] = {
    "acheck_password": (lambda: hashers.acheck_password("x", "noting$2$x"), 1),
    "an unknown algorithm": (lambda: hashers.acheck_password("x", "none$2$x"), 1),
    "upgrade": (upgrade_in_a_coroutine, 2),
    "harden_runtime": (harden_in_a_coroutine, 2),
    "acreate_user": (lambda: User.objects.acreate_user("Grace", password="x"), 1),
    "acreate_superuser": (lambda: User.objects.acreate_superuser("Grace", password="x"), 1),
    "aauthenticate": (lambda: auth.aauthenticate(username="Ada", password="secret"), 1),
    "no such user": (lambda: auth.aauthenticate(username="Nobody", password="secret"), 1),
}


@pytest.mark.parametrize("name", ASYNC)
def test_in_a_coroutine(user: User, run: Run, name: str) -> None:
    function, hashes = ASYNC[name]

    async def main() -> None:
        await function()

    run(main)
    assert WHERE.on_loop == [False] * hashes


@pytest.mark.parametrize(
    ("url", "data", "hashes"),
    [
        ("/login/", {"username": "Ada", "password": "secret"}, 1),
        ("/admin/login/", {"username": "Ada", "password": "secret", "next": "/"}, 1),
        (
            "/change/",
            {"old_password": "secret", "new_password1": "b4ttery", "new_password2": "b4ttery"},
            2,
        ),
        ("/admin/password_change/", {"old_password": "secret", "new_password1": "b4ttery",
                                     "new_password2": "b4ttery"}, 2),
        ("/admin/auth/user/add/", usable({"username": "Grace", **NEW}), 1),
        ("/admin/auth/user/{pk}/password/", usable(NEW), 1),
    ],
)  # fmt: skip
def test_views_of_django(
    user: User, run: Run, url: str, data: dict[str, str], hashes: int
) -> None:
    cookies = {} if "login" in url else {"cookie": f"sessionid={log_in(user)}"}

    async def main() -> HttpResponse:
        application = ASGIHandler()
        answer: Any = await post(application, url.format(pk=user.pk), data, headers=cookies)
        assert answer.status == 302, answer.text
        return answer

    run(main)
    assert WHERE.on_loop == [False] * hashes


# Where Django hashes

CALLS = {
    *("make_password", "check_password", "acheck_password", "verify_password"),
    *("set_password", "set_password_and_save", "acheck_password_with_timing_attack_mitigation"),
    *("check_password_with_timing_attack_mitigation", "harden_runtime"),
}
HERE = {
    # By file: the functions that call one of CALLS, all of which are called above.
    "__init__.py": {
        "check_password_with_timing_attack_mitigation",
        "acheck_password_with_timing_attack_mitigation",
    },
    "backends.py": {"authenticate", "aauthenticate"},
    "base_user.py": {
        *("check_password", "acheck_password", "set_password"),
        *("set_unusable_password", "setter"),
    },
    "forms.py": {"set_password_and_save", "save", "clean_old_password"},
    "handlers/modwsgi.py": {"check_password", "_get_user"},
    "hashers.py": {"verify_password", "check_password", "acheck_password"},
    "management/commands/changepassword.py": {"handle"},
    "models.py": {"_create_user_object", "_create_user", "_acreate_user"},
}


def callers(source: str) -> set[str]:
    """The functions whose own code has one of CALLS."""
    found: set[str] = set()

    def visit(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = function
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = child.name
            named = getattr(child, "attr", None) or getattr(child, "id", None)
            if named in CALLS and isinstance(getattr(child, "ctx", None), ast.Load) and function:
                found.add(function)
            visit(child, inside)

    visit(ast.parse(source), "")
    return found


def test_no_call_site_is_missing() -> None:
    """A function that begins to hash, in this or another Django, belongs into the lists above."""
    root = Path(auth.__file__).parent
    found = {
        str(file.relative_to(root)): names
        for file in root.rglob("*.py")
        if "migrations" not in file.parts and (names := callers(file.read_text()))
    }
    assert found.keys() <= HERE.keys()
    assert {name: names - HERE[name] for name, names in found.items() if names - HERE[name]} == {}


# How many at once


class Gate(hashers.BasePasswordHasher):
    """Stays in its thread until it is let go."""

    algorithm = "gate"
    begun: list[str] = []
    go = threading.Event()

    def encode(self, password: str, salt: str) -> str:
        self.begun.append(password)
        assert self.go.wait(20)
        return f"gate$${password}"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Gate]]:
    """Two threads for hashing, whatever the machine has."""
    executor = ThreadPoolExecutor(2)
    monkeypatch.setattr(hashing, "_executor", executor)
    Gate.begun.clear()
    Gate.go.clear()
    with override_settings(PASSWORD_HASHERS=[f"{__name__}.Gate"]):
        yield Gate
    Gate.go.set()
    executor.shutdown()


def test_a_thread_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_executor", None)
    made = hashing.hashing_threads()
    assert made is hashing.hashing_threads()
    assert made._max_workers == hashing.cores() >= 1
    made.shutdown()
    if sys.platform == "linux":
        assert hashing.cores() == len(os.sched_getaffinity(0))


def test_no_more_hash_at_once_and_nothing_else_waits_behind_them(
    run: Run, gate: type[Gate]
) -> None:
    async def main() -> None:
        hashed = [asyncio.create_task(on_loop(hashers.make_password)(f"{i}")) for i in range(5)]
        await until(lambda: len(gate.begun) == 2)
        # Many more calls than there are threads for hashing go through meanwhile.
        assert await asyncio.gather(*(in_thread(int) for _ in range(50))) == [0] * 50
        assert len(gate.begun) == 2
        # One that still waits is dropped with its request.
        hashed[4].cancel()
        with pytest.raises(asyncio.CancelledError):
            await hashed[4]
        assert len(gate.begun) == 2
        gate.go.set()
        assert await asyncio.gather(*hashed[:4]) == [f"gate$${i}" for i in range(4)]
        assert sorted(gate.begun) == ["0", "1", "2", "3"]

    run(main)
    gate.begun.clear()
    gate.go.clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork()")
def test_a_child_process_makes_threads_of_its_own(gate: type[Gate]) -> None:
    gate.go.set()
    hashing.hashing_threads().submit(int).result()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, str(hashing.hashing_threads().submit(int, "7").result(10)).encode())
        os._exit(0)
    assert os.read(read, 10) == b"7"
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
