"""Ten async tests that write, for pytest-django with pytest-asyncio."""

import pytest
import pytest_asyncio
from ten import *  # noqa: F403
from ten import live_note

pytestmark = [pytest.mark.django_db, pytest.mark.asyncio]


@pytest_asyncio.fixture
async def async_note(db):
    async for note in live_note():
        yield note
