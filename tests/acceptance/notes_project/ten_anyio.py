"""Ten async tests that write, for pytest-django with the plugin of anyio."""

import pytest
from ten import *  # noqa: F403
from ten import live_note

pytestmark = [pytest.mark.django_db, pytest.mark.anyio]


@pytest.fixture
async def async_note(db):
    async for note in live_note():
        yield note
