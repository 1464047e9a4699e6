"""Mail is sent in threads when it is sent in a bridge."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.utils import CachedDnsName
from django.test import override_settings
from django.utils.log import AdminEmailHandler

from nuages import on_loop
from tests.integration.conftest import Run
from tests.integration.handoff_tools import WHERE, both_ways
from tests.integration.mail_tools import OLD_SETTINGS

pytestmark = OLD_SETTINGS


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    WHERE.take()


@contextlib.asynccontextmanager
async def smtp_server() -> AsyncIterator[tuple[int, list[str]]]:
    """An SMTP server (RFC 5321, no extensions) on this loop; gives its port and what it got."""
    received: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := await reader.readline():
            verb = line[:4].upper().strip()
            if verb == b"DATA":
                writer.write(b"354 go on\r\n")
                received.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 fine\r\n")
            if verb == b"QUIT":
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], received


@pytest.fixture
def _smtp() -> Iterator[None]:
    with override_settings(
        EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend",
        EMAIL_HOST="127.0.0.1",
        EMAIL_TIMEOUT=20,
        ADMINS=[("Ada", "ada@site.test")],
    ):
        yield


@pytest.mark.usefixtures("_smtp")
def test_mail_by_smtp_while_the_loop_goes_on(run: Run) -> None:
    """The server runs on the same loop: a send that blocked it would wait for itself."""

    async def main() -> None:
        async with smtp_server() as (port, received):
            with override_settings(EMAIL_PORT=port):
                args: tuple[Any, ...] = ("Hello", "Text", "a@site.test", ["b@site.test"])
                assert await on_loop(mail.send_mail)(*args) == 1
                assert await on_loop(mail.send_mass_mail)([args, args]) == 2
                await on_loop(mail.mail_admins)("Help", "Text")

                def kept_open() -> None:
                    with mail.get_connection() as connection:
                        mail.EmailMessage(*args, connection=connection).send()
                        connection.send_messages([mail.EmailMessage(*args)])

                await on_loop(kept_open)()
        assert len(received) == 6

    run(main)


@pytest.mark.usefixtures("_smtp")
def test_the_admins_get_mail_of_an_error_logged_in_a_bridge(run: Run) -> None:
    logger = logging.getLogger("tests.handoffs")
    handler = AdminEmailHandler()

    def log() -> None:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            logger.exception("Internal Server Error")

    async def main() -> None:
        async with smtp_server() as (port, received):
            with override_settings(EMAIL_PORT=port):
                await on_loop(log)()
        assert len(received) == 1
        assert "ZeroDivisionError" in received[0]

    logger.addHandler(handler)
    logger.propagate = False
    try:
        run(main)
    finally:
        logger.removeHandler(handler)


class OwnMail(BaseEmailBackend):
    def send_messages(self, email_messages: Any) -> int:
        WHERE.note()
        return len(email_messages)


def test_mail_backends_of_users(run: Run) -> None:
    message = mail.EmailMessage("Hello", "Text", "a@site.test", ["b@site.test"])
    with override_settings(EMAIL_BACKEND=f"{__name__}.OwnMail"):
        both_ways(run, message.send)
        both_ways(run, lambda: OwnMail().send_messages([message]))


class Stream(io.StringIO):
    def write(self, text: str) -> int:
        WHERE.note()
        return super().write(text)


def test_mail_to_the_console_and_to_files(run: Run, tmp_path: Path) -> None:
    message = mail.EmailMessage("Hello", "Text", "a@site.test", ["b@site.test"])
    stream = Stream()
    message.connection = mail.get_connection(
        "django.core.mail.backends.console.EmailBackend", stream=stream
    )
    both_ways(run, message.send)
    message.connection = mail.get_connection(
        "django.core.mail.backends.filebased.EmailBackend", file_path=str(tmp_path)
    )
    run(on_loop(message.send))
    assert "Subject: Hello" in next(tmp_path.iterdir()).read_text()


def test_the_name_of_the_host(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getfqdn", WHERE.spy(lambda: "site.test"))
    assert both_ways(run, lambda: str(CachedDnsName())) == "site.test"


def test_the_thread_shares_the_callers_context(run: Run) -> None:
    from django.utils import translation

    class Telling(OwnMail):
        def send_messages(self, email_messages: Any) -> Any:
            return translation.get_language()

    def use() -> Any:
        with translation.override("fr"):
            return Telling().send_messages([])

    assert run(on_loop(use)) == "fr"
