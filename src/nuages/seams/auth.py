"""Auth: password hashing off the loop, the user's auth backends and validators in threads.

A function called from a bare coroutine (a sync `make_password()` in an async view) has nothing to
await with and blocks, as it does in stock Django.
"""

from __future__ import annotations

import functools
from typing import Any

from nuages.bridge import on_loop
from nuages.handling.hashing import in_hashing_thread
from nuages.handling.placement import placed
from nuages.handling.preload import aloaded_user, loaded_user
from nuages.seams.table import Seam
from nuages.seams.to_thread import family, hand_over, in_thread_on_loop, with_hidden_arguments

_BACKEND = (
    "authenticate",
    "get_user",
    "get_user_permissions",
    "get_group_permissions",
    "get_all_permissions",
    "has_perm",
    "has_module_perms",
)
_OWN_BACKENDS = frozenset(["django.contrib.auth.backends"])
_OWN_VALIDATORS = frozenset(["django.contrib.auth.password_validation"])


def _load_backend(original: Any) -> Any:
    @functools.wraps(original)
    def load_backend(path: str) -> Any:
        backend = original(path)
        hand_over(type(backend), _BACKEND, _OWN_BACKENDS)
        return backend

    return load_backend


def _get_password_validators(original: Any) -> Any:
    load = in_thread_on_loop(original)

    @functools.wraps(original)
    def get_password_validators(validator_config: Any) -> Any:
        validators = load(validator_config)
        for validator in validators:
            hand_over(type(validator), ("validate", "password_changed"), _OWN_VALIDATORS)
        return validators

    return get_password_validators


def _get_user(original: Any) -> Any:
    @functools.wraps(original)
    def get_user(request: Any) -> Any:
        if not hasattr(request, "_cached_user"):
            user = loaded_user(request)
            if user is not None:
                request._cached_user = user
        return original(request)

    return get_user


def _auser(original: Any) -> Any:
    @functools.wraps(original)
    async def auser(request: Any) -> Any:
        if not hasattr(request, "_acached_user"):
            user = await aloaded_user(request)
            if user is not None:
                request._acached_user = user
        return await original(request)

    return auser


def _placed(original: Any) -> Any:
    return placed


def _portal_to_sync(original: Any) -> Any:
    @functools.wraps(original)
    def portal_to_sync(function: Any) -> Any:
        return original(on_loop(function))

    return portal_to_sync


def _on_loop(original: Any) -> Any:
    def hands_over(function: Any, thread_sensitive: bool = True) -> Any:
        return on_loop(function)

    return hands_over


def seams() -> list[Seam]:
    """Return this area's seams; those of contrib.auth's models where it is installed."""
    from django.apps import apps
    from django.contrib import auth
    from django.contrib.auth import hashers

    hashing = "It hashes in a coroutine, which stops the loop for as long as that takes."
    table = [
        family(
            "django.contrib.auth.hashers:BasePasswordHasher",
            ("encode", "verify", "harden_runtime"),
            "Hashing burns CPU on purpose (100 ms and more), without the interpreter's lock. "
            "make_password and check_password are imported by value all over; what they and "
            "whoever else hashes end up in are these methods of the hasher.",
            run_in=in_hashing_thread,
        ),
        Seam(
            "django.contrib.auth.hashers:acheck_password",
            hashing,
            with_hidden_arguments,
            "(password, encoded, setter=None, preferred='default')",
        ),
        Seam(
            "django.contrib.auth.base_user:AbstractBaseUser.acheck_password",
            f"{hashing} It has the function above by value, and its setter hashes too.",
            with_hidden_arguments,
            "(self, raw_password)",
        ),
        Seam(
            "django.contrib.auth.password_validation:get_password_validators",
            "CommonPasswordValidator unpacks its list when it is made; a validator of the user's "
            "may ask a server.",
            _get_password_validators,
            "(validator_config)",
        ),
        Seam(
            "django.contrib.auth:load_backend",
            "An auth backend of the user's (LDAP, another server) is sync code that may block; "
            "every backend comes from here, whatever its class.",
            _load_backend,
            "(path)",
        ),
    ]
    table.append(
        Seam(
            "django.contrib.auth.decorators:sync_to_async",
            "The test of user_passes_test() may be the project's, which may block. Django's own, "
            "that of login_required(), needs no thread.",
            _placed,
            callers=frozenset(["_view_wrapper"]),
        )
    )
    table.append(
        Seam(
            "django.contrib.auth.decorators:async_to_sync",
            "An async test before a sync view gets a request.user that is loaded when it is "
            "looked at, which a coroutine cannot await.",
            _portal_to_sync,
            callers=frozenset(["_view_wrapper"]),
        )
    )
    for module, user in (
        (hashers, "acheck_password"),
        (auth, "acheck_password_with_timing_attack_mitigation"),
    ):
        if hasattr(module, "sync_to_async"):  # since Django 6
            table.append(
                Seam(
                    f"{module.__name__}:sync_to_async",
                    "It hashes in a thread of the loop's executor; the hasher itself goes to "
                    "one of those that are for hashing.",
                    _on_loop,
                    callers=frozenset([user]),
                )
            )
    if apps.is_installed("django.contrib.auth"):
        table += [
            Seam(
                "django.contrib.auth.backends:sync_to_async",
                "Called for what a backend of the project's has in sync only, and for hooks of "
                "Django's own that do nothing.",
                _placed,
                callers=frozenset(
                    [
                        "aauthenticate",
                        "aget_user",
                        "aget_user_permissions",
                        "aget_group_permissions",
                        "aconfigure_user",
                    ]
                ),
            ),
            Seam(
                "django.contrib.auth.backends:ModelBackend.aauthenticate",
                f"{hashing} It does so for a user that does not exist.",
                with_hidden_arguments,
                "(self, request, username=None, password=None, **kwargs)",
            ),
            Seam(
                "django.contrib.auth.models:UserManager._acreate_user",
                hashing,
                with_hidden_arguments,
                "(self, username, email, password, **extra_fields)",
            ),
            Seam(
                "django.contrib.auth.middleware:get_user",
                "request.user finds the user that was loaded before an async view.",
                _get_user,
                "(request)",
            ),
            Seam(
                "django.contrib.auth.middleware:auser",
                "request.auser() finds the same user.",
                _auser,
                "(request)",
            ),
        ]
    return table
