"""Passwords are hashed in threads, and the user's auth backends and validators asked there."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib import auth
from django.contrib.auth import hashers, password_validation
from django.contrib.auth.backends import BaseBackend, ModelBackend
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import User
from django.test import override_settings
from django.views.debug import ExceptionReporter
from django.views.decorators.debug import sensitive_variables

from nuages import on_loop
from tests.integration.conftest import Run
from tests.integration.handoff_tools import LOOP, THREAD, WHERE, both_ways, close_pools


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    WHERE.take()


PBKDF2 = "django.contrib.auth.hashers.PBKDF2PasswordHasher"


@pytest.fixture
def pbkdf2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashers, "pbkdf2", WHERE.spy(hashers.pbkdf2))
    monkeypatch.setattr(hashers.PBKDF2PasswordHasher, "iterations", 10)


class OwnHasher(hashers.BasePasswordHasher):
    """A user's hasher, that calls nothing of Django's."""

    algorithm = "own"

    def encode(self, password: str, salt: str) -> str:
        WHERE.note()
        return f"own${salt}${password[::-1]}"

    def verify(self, password: str, encoded: str) -> bool:
        WHERE.note()
        return encoded.endswith(f"${password[::-1]}")

    def must_update(self, encoded: str) -> bool:
        return True

    def harden_runtime(self, password: str, encoded: str) -> None:
        WHERE.note()


class Reversing:
    def encode(self, password: str, salt: str) -> str:
        WHERE.note()
        return f"mixed${salt}${password[::-1]}"


class MixedHasher(Reversing, OwnHasher):
    """Its encode() comes from a class that is no hasher."""

    algorithm = "mixed"


OWN = [f"{__name__}.OwnHasher", f"{__name__}.MixedHasher"]


@pytest.mark.parametrize(
    "hash_it",
    [
        lambda: hashers.make_password("secret"),
        lambda: hashers.check_password("secret", "pbkdf2_sha256$10$salt$rubbish"),
        lambda: hashers.check_password("secret", "!unusable"),
        lambda: hashers.verify_password("secret", "pbkdf2_sha256$1$salt$rubbish"),
        lambda: hashers.get_hasher("pbkdf2_sha256").encode("secret", "salt"),
        lambda: hashers.PBKDF2PasswordHasher().encode("secret", "salt"),
        lambda: User().set_password("secret"),
        lambda: User(password="pbkdf2_sha256$10$salt$rubbish").check_password("secret"),
    ],
)
def test_hashing_whoever_calls_it(run: Run, pbkdf2: None, hash_it: Callable[[], Any]) -> None:
    both_ways(run, hash_it)


@pytest.mark.parametrize("algorithm", ["own", "mixed"])
def test_hashers_of_users(run: Run, algorithm: str) -> None:
    with override_settings(PASSWORD_HASHERS=OWN):

        def use() -> None:
            encoded = hashers.make_password("secret", hasher=algorithm)
            assert encoded.startswith(f"{algorithm}$")
            assert hashers.check_password("secret", encoded)
            assert not hashers.check_password("wrong", encoded, preferred=algorithm)
            assert isinstance(hashers.get_hasher(algorithm), OwnHasher)

        both_ways(run, use)


@pytest.mark.parametrize(
    "hasher",
    [
        *(hashers.PBKDF2PasswordHasher, hashers.PBKDF2SHA1PasswordHasher),
        *(hashers.Argon2PasswordHasher, hashers.BCryptSHA256PasswordHasher),
        *(hashers.BCryptPasswordHasher, hashers.ScryptPasswordHasher, hashers.MD5PasswordHasher),
    ],
)
@pytest.mark.parametrize("method", ["encode", "verify", "harden_runtime"])
def test_every_hasher_of_django_is_handed_over(hasher: type, method: str) -> None:
    assert hasattr(getattr(hasher, method), "_nuages_handed_over")


def test_scrypt_for_real(run: Run) -> None:
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.ScryptPasswordHasher"]):
        encoded = run(on_loop(hashers.make_password), "secret")
        assert run(on_loop(hashers.check_password), "secret", encoded)
        assert not run(on_loop(hashers.check_password), "wrong", encoded)


def test_the_async_functions_hash_in_threads(sqlite: Any, run: Run, pbkdf2: None) -> None:
    async def main() -> None:
        user = await User.objects.acreate_user("Ada", password="secret")
        assert WHERE.take() == THREAD
        assert await hashers.acheck_password("secret", user.password)
        assert await user.acheck_password("secret")
        assert await auth.aauthenticate(username="Ada", password="secret") == user
        assert WHERE.take() == THREAD
        assert await auth.aauthenticate(username="Nobody", password="secret") is None
        assert WHERE.take() == THREAD
        user.password = "pbkdf2_sha256$9$salt$" + user.password.rsplit("$", 1)[1]
        close_pools()

    with override_settings(PASSWORD_HASHERS=[PBKDF2]):
        run(main)
    User.objects.all().delete()


def test_a_password_hashed_anew_at_login_is_hashed_in_a_thread(
    sqlite: Any, run: Run, pbkdf2: None
) -> None:
    async def main() -> None:
        user = await User.objects.acreate_user("Ada", password="secret")
        await User.objects.filter(pk=user.pk).aupdate(
            password=await on_loop(old.encode)("secret", "s", 5)
        )
        WHERE.take()
        user = await User.objects.aget()
        assert await user.acheck_password("secret")
        assert WHERE.take() == THREAD
        assert (await User.objects.aget()).password.startswith("pbkdf2_sha256$10$")
        close_pools()

    old = hashers.PBKDF2PasswordHasher()
    with override_settings(PASSWORD_HASHERS=[PBKDF2]):
        run(main)
    User.objects.all().delete()


def test_the_async_functions_stay_what_they_are() -> None:
    for function in (hashers.acheck_password, AbstractBaseUser.acheck_password):
        assert asyncio.iscoroutinefunction(function)


class OwnValidator:
    def __init__(self) -> None:
        WHERE.note()

    def validate(self, password: str, user: Any = None) -> None:
        WHERE.note()

    def password_changed(self, password: str, user: Any = None) -> None:
        WHERE.note()

    def get_help_text(self) -> str:
        return ""


def test_validators_are_made_and_asked_in_threads(run: Run) -> None:
    def use() -> None:
        password_validation.get_default_password_validators.cache_clear()
        password_validation.validate_password("secret")
        password_validation.password_changed("secret")

    with override_settings(AUTH_PASSWORD_VALIDATORS=[{"NAME": f"{__name__}.OwnValidator"}]):
        both_ways(run, use)
        # Made already:
        run(on_loop(password_validation.validate_password), "secret")
        assert WHERE.take() == THREAD
    password_validation.get_default_password_validators.cache_clear()


def test_the_list_of_common_passwords_is_unpacked_in_a_thread(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gzip, "open", WHERE.spy(gzip.open))
    name = "django.contrib.auth.password_validation.CommonPasswordValidator"
    both_ways(run, lambda: password_validation.get_password_validators([{"NAME": name}]))


class Directory(BaseBackend):
    """A user's backend that asks another server."""

    def authenticate(self, request: Any, name: str = "", **kwargs: Any) -> Any:
        WHERE.note()
        return User(username=name)

    def get_user_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        WHERE.note()
        return {"app.do"}


class NotDerived:
    """A backend needs no base class."""

    def authenticate(self, request: Any, name: str) -> Any:
        WHERE.note()

    def has_perm(self, user_obj: Any, perm: str, obj: Any = None) -> bool:
        WHERE.note()
        return True


class Choosy(ModelBackend):
    def user_can_authenticate(self, user: Any) -> bool:
        WHERE.note()
        return True


@pytest.mark.parametrize("name", ["Directory", "NotDerived"])
def test_auth_backends_of_users(run: Run, name: str) -> None:
    def use() -> None:
        auth.authenticate(name="Ada")
        assert User(username="Ada", is_active=True).has_perm("app.do")

    with override_settings(AUTHENTICATION_BACKENDS=[f"{__name__}.{name}"]):
        both_ways(run, use)


def test_what_a_backend_does_not_override_stays_on_the_loop(sqlite: Any, run: Run) -> None:
    pk = User.objects.create_user("Ada").pk

    def use() -> None:
        assert auth.load_backend(f"{__name__}.Choosy").get_user(pk).username == "Ada"

    @on_loop
    async def main() -> None:
        use()
        close_pools()

    use()
    run(main)
    assert WHERE.take() == LOOP
    User.objects.all().delete()


class Leaky(hashers.BasePasswordHasher):
    algorithm = "leaky"

    def encode(self, password: str, salt: str) -> str:
        raise RuntimeError("the library is broken")


@pytest.mark.parametrize("hidden", [("password",), ()], ids=["password", "everything"])
@pytest.mark.parametrize("where", ["plain", "bridge"])
def test_error_reports_do_not_show_what_django_hides(
    run: Run, where: str, hidden: tuple[str, ...]
) -> None:
    @sensitive_variables(*hidden)
    def login(password: str) -> None:
        hashers.make_password(password, "salt", "leaky")

    def report() -> str:
        try:
            login("emases nepo"[::-1])  # the report shows the source
        except RuntimeError as error:
            reporter = ExceptionReporter(None, RuntimeError, error, error.__traceback__)
            return reporter.get_traceback_html() + reporter.get_traceback_text()
        raise AssertionError("nothing was raised")

    with override_settings(PASSWORD_HASHERS=[f"{__name__}.Leaky"]):
        text = run(on_loop(report)) if where == "bridge" else report()
    assert "the library is broken" in text
    assert "open sesame" not in text


def test_a_bare_coroutine_has_nothing_to_await_with(run: Run, pbkdf2: None) -> None:
    async def main() -> None:
        hashers.make_password("secret")

    run(main)
    assert WHERE.take() == LOOP
