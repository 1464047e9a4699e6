"""A request of a logged-in user needs no thread, and the loop goes on while it is served."""

from __future__ import annotations

import asyncio
import builtins
import gettext
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from django.utils.translation import trans_real

from nuages.asgi import get_asgi_application
from nuages.db.backends.base.statistics import statistics
from nuages.db.pool.pool import open_pools
from tests.integration.asgi_tools import Exchange, cookie, exchange
from tests.integration.conftest import Counts, Run
from tests.integration.full_site import SITE, log_in, make_user
from tests.integration.pool_tools import Heartbeat, server
from tests.library.models import Author, Book

VIEWS = {
    "async view": "/books/async/",
    "on_loop sync view": "/books/loop/",
    "on_loop class-based view": "/books/class/",
    "admin changelist": "/admin/library/book/",
}
every_view = pytest.mark.parametrize("path", VIEWS.values(), ids=VIEWS)


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    with override_settings(**SITE):
        yield


@pytest.fixture
def session(postgresql: dict[str, Any]) -> tuple[bytes, bytes]:
    """The cookie of a logged-in user of a site with two books."""
    author = Author.objects.create(name="Ursula")
    for title in ("one", "two"):
        Book.objects.create(title=title, author=author)
    return cookie(sessionid=log_in(make_user()))


def check(answer: Exchange) -> None:
    assert answer.status == 200, answer
    assert "two" in answer.text
    assert "django" in answer.text
    assert "Ursula" in answer.text


@every_view
def test_no_thread_is_used(
    session: tuple[bytes, bytes], run: Run, threads: Counts, path: str
) -> None:
    async def main() -> None:
        application = get_asgi_application()
        check(await exchange(application, path, headers=[session]))
        threads.clear()  # templates and translations are read by a thread at their first use
        for _ in range(3):
            statistics.reset()
            check(await exchange(application, path, headers=[session]))
            # The session, the user and the books.
            assert statistics.bridged >= 3
            assert (statistics.blocked, statistics.worker) == (0, 0)
            threads.assert_none()
        (pool,) = open_pools()
        assert pool.stats()["used"] == 0

    run(main)
    threads.assert_none()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened."""
    names: list[str] = []

    def opening(file: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(str(file))
        return original(file, *args, **kwargs)

    original = builtins.open
    monkeypatch.setattr(builtins, "open", opening)
    return names


@every_view
def test_what_the_first_request_loads_is_loaded_once(
    session: tuple[bytes, bytes], run: Run, opened: list[str], path: str
) -> None:
    """In a new process: compiled translations and templates. Later requests open no file."""

    async def main() -> None:
        application = get_asgi_application()
        opened.clear()
        check(await exchange(application, path, headers=[session]))
        kinds = {Path(name).suffix for name in opened}
        assert kinds == ({".mo", ".html"} if path.startswith("/admin/") else {".mo"}), opened
        opened.clear()
        check(await exchange(application, path, headers=[session]))
        assert opened == []

    trans_real._translations.clear()
    trans_real._default = None
    gettext._translations.clear()  # type: ignore[attr-defined]
    with override_settings(**SITE):  # new template engines
        run(main)


def test_the_counter_counts(session: tuple[bytes, bytes], run: Run, threads: Counts) -> None:
    """A control: a plain sync view is given to a thread."""

    async def main() -> None:
        application = get_asgi_application()
        check(await exchange(application, "/books/sync/", headers=[session]))
        threads.clear()
        check(await exchange(application, "/books/sync/", headers=[session]))
        calls = [s for s in threads.submitted if s.startswith("ThreadPoolExecutor")]
        assert len(calls) == 2, calls  # the view, and the response's close()
        # asgiref joins it in another one.
        assert len([s for s in threads.started if "ThreadPoolExecutor" in s]) == 1

    run(main)


@every_view
def test_the_loop_goes_on_while_the_query_of_a_request_waits(
    session: tuple[bytes, bytes], run: Run, threads: Counts, path: str
) -> None:
    """The server keeps the request's query waiting; the loop and other requests go on."""

    async def main() -> None:
        application = get_asgi_application()
        check(await exchange(application, path, headers=[session]))
        threads.clear()  # templates and translations are read by a thread at their first use
        async with server() as pg:
            await pg.execute("BEGIN")
            await pg.execute("LOCK TABLE library_book IN ACCESS EXCLUSIVE MODE")
            async with Heartbeat() as heart:
                statistics.reset()
                task = asyncio.create_task(exchange(application, path, headers=[session]))
                await pg.until_blocked()
                await heart.more(200)
                assert (await exchange(application, "/class/")).text == "1"
                await pg.until_blocked()
                assert not task.done()
            await pg.execute("COMMIT")
            check(await task)
        assert statistics.blocked == 0

    run(main)
    threads.assert_none()
