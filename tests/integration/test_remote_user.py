"""RemoteUserMiddleware runs in its async form, which reads the header that a proxy sets."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import AsyncClient, override_settings

from nuages.db.pool.pool import open_pools
from tests.integration.conftest import Run

SITE = {
    "ROOT_URLCONF": "tests.integration.preload_site",
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.RemoteUserMiddleware",
    ],
    "AUTHENTICATION_BACKENDS": ["django.contrib.auth.backends.RemoteUserBackend"],
}


def test_a_remote_user_is_logged_in_and_out_again(sqlite: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        client = AsyncClient()
        named = await client.get("/async/user_twice/", headers={"Remote-User": "ada"})
        assert named.json() == {"saw": ["ada", True, True]}
        gone = await client.get("/async/user/")
        assert gone.json() == {"saw": None}
        for pool in open_pools():
            pool.close()

    with override_settings(**SITE):
        run(main)
    assert User.objects.get().username == "ada"
    User.objects.all().delete()
    Session.objects.all().delete()
