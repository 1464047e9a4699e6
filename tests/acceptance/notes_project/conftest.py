import pytest
from notes.runner import report


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _report(django_db_setup, django_db_blocker):
    yield
    with django_db_blocker.unblock():
        report()
