"""`nuages.mail`: the async twins, and SMTP on the loop, against a real server."""

from __future__ import annotations

import asyncio
import itertools
import logging
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.utils import DNS_NAME
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.log import AdminEmailHandler

from nuages import on_loop
from nuages.asgi import get_asgi_application
from nuages.mail import amail_admins, amail_managers, asend_mail, asend_mass_mail
from nuages.mail.smtp import LARGE, EmailBackend
from tests.integration.asgi_client import fetch
from tests.integration.conftest import Counts, Run
from tests.integration.handoff_tools import LOOP, THREAD, WHERE
from tests.integration.mail_tools import (
    OLD_SETTINGS,
    Box,
    check_password,
    mail_server,
    make_certificate,
)
from tests.integration.pool_tools import Heartbeat
from tests.integration.sweep_tools import TIMINGS, Cut, Timing

pytestmark = OLD_SETTINGS

TEXT: tuple[Any, ...] = ("Hello", "Text", "a@site.test", ["b@site.test"])
ADMINS = [("Ada", "ada@site.test")]


def settings(port: int, **options: Any) -> override_settings:
    return override_settings(
        **{
            "EMAIL_BACKEND": "nuages.mail.smtp.EmailBackend",
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": port,
            "EMAIL_TIMEOUT": 20,
            "ADMINS": ADMINS,
            "MANAGERS": ADMINS,
        }
        | options
    )


@pytest.fixture
def box() -> Iterator[Box]:
    """A server, to which mail goes by the settings."""
    str(DNS_NAME)  # asked of DNS once a process
    WHERE.take()
    with mail_server() as box, settings(box.port):
        yield box


def message(**options: Any) -> mail.EmailMessage:
    return mail.EmailMessage(*TEXT, **options)


async def event(flag: threading.Event) -> None:
    """Wait for what the server's thread says, without a thread here."""
    while not flag.is_set():  # noqa: ASYNC110 - another thread's
        await asyncio.sleep(0.001)


# Sending


def test_every_way_to_send_mail_takes_no_thread(run: Run, box: Box, threads: Counts) -> None:
    async def main() -> None:
        assert await asend_mail(*TEXT, html_message="<p>Text") == 1
        assert await asend_mass_mail([TEXT, TEXT]) == 2
        await amail_admins("Help", "Text")
        await amail_managers("Look", "Text")
        assert await message().asend() == 1
        assert await mail.EmailMessage("Nobody", "Text", "a@site.test").asend() == 0
        assert await on_loop(mail.send_mail)(*TEXT) == 1

    threads.clear()
    run(main)
    threads.assert_none()
    hello = ["Hello"] * 3
    assert box.subjects == [*hello, "[Django] Help", "[Django] Look", "Hello", "Hello"]
    assert len(box.sessions) == 6  # the two of asend_mass_mail() share one
    assert box.messages[0].mail_from == "a@site.test"
    assert box.messages[3].rcpt_tos == ["ada@site.test"]


def test_outside_a_loop_it_is_djangos_backend(box: Box) -> None:
    """And the same backend object serves both, with a connection for each."""
    backend = EmailBackend()
    assert backend.open()
    assert isinstance(backend.connection, smtplib.SMTP)

    async def main() -> None:
        assert await backend.asend_messages([message()]) == 1

    asyncio.run(main())
    assert backend.send_messages([message()]) == 1
    backend.close()
    assert backend.connection is None
    assert (len(box.messages), len(box.sessions)) == (2, 2)


def test_what_is_sent_is_what_djangos_backend_sends(run: Run, box: Box) -> None:
    def send() -> None:
        made = mail.EmailMultiAlternatives(
            "Grüße", "line\n.dot\n", "Ada <ada@söte.test>", ["b@site.test"], ["hidden@site.test"],
            headers={"Message-ID": "<1@site.test>", "Date": "Thu, 01 Jan 2026 00:00:00 -0000"},
        )  # fmt: skip
        made.attach("a.bin", bytes(range(256)), "application/octet-stream")
        made.attach_alternative("<p>line", "text/html")
        made.send()

    send()
    run(on_loop(send))
    plain, bridged = box.messages
    assert (plain.mail_from, plain.rcpt_tos) == (bridged.mail_from, bridged.rcpt_tos)

    def text(envelope: Any) -> str:
        # The boundaries are random.
        lines = envelope.content.decode().split("\r\n")
        return "\n".join(line for line in lines if "=====" not in line)

    assert text(plain) == text(bridged)


def test_the_loop_goes_on_while_the_server_thinks(run: Run, box: Box) -> None:
    box.held = True

    async def main() -> None:
        async with Heartbeat() as heart:
            task = asyncio.create_task(asend_mail(*TEXT))
            await event(box.holding)
            await heart.more(100)
            assert not task.done()
            box.release()
            assert await task == 1

    run(main)


class Noting(mail.EmailMessage):
    def message(self, **options: Any) -> Any:
        WHERE.note()
        return super().message(**options)


@pytest.mark.parametrize(("size", "where"), [(LARGE, THREAD), (100, LOOP)])
def test_a_large_message_is_built_in_a_thread(
    run: Run, box: Box, size: int, where: set[bool]
) -> None:
    made = Noting(*TEXT)
    made.attach("a.bin", b"x" * size, "application/octet-stream")
    assert run(made.asend) == 1
    assert WHERE.take() == where


# Connections


def test_one_connection_is_used_until_it_is_closed(run: Run, box: Box, threads: Counts) -> None:
    async def main() -> None:
        async with mail.get_connection() as connection:
            assert await connection.aopen() is False
            assert await connection.asend_messages([message(), message()]) == 2
            # Senders take turns: SMTP is one conversation.
            senders = (message(connection=connection).asend() for _ in range(5))
            assert await asyncio.gather(*senders) == [1] * 5
        assert (len(box.messages), len(box.sessions)) == (7, 1)

        def in_sync_code() -> None:
            with mail.get_connection() as connection:
                connection.send_messages([message()])
                message(connection=connection).send()

        await on_loop(in_sync_code)()
        assert (len(box.messages), len(box.sessions)) == (9, 2)
        await EmailBackend().aclose()

    threads.clear()
    run(main)
    threads.assert_none()


def test_a_connection_that_was_lost_is_replaced(run: Run, box: Box) -> None:
    async def main() -> None:
        connection = EmailBackend()
        await connection.aopen()
        assert await connection.asend_messages([message()]) == 1
        here = connection._here
        assert here is not None
        assert here.client is not None
        box.loop.call_soon_threadsafe(box.sessions[0].transport.abort)  # type: ignore[union-attr]
        while here.client.is_connected:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        assert await connection.asend_messages([message()]) == 1
        await connection.aclose()
        await connection.aclose()

    run(main)
    assert (len(box.messages), len(box.sessions)) == (2, 2)


def test_each_event_loop_has_a_connection_of_its_own(run: Run, box: Box) -> None:
    connection = EmailBackend()

    async def main() -> None:
        async with connection:
            await connection.asend_messages([message()])

    run(main)
    run(main)
    assert (len(box.messages), len(box.sessions)) == (2, 2)


class OwnSending(EmailBackend):
    def send_messages(self, email_messages: Any) -> int:
        WHERE.note()
        return super().send_messages(email_messages)


class OwnContext(EmailBackend):
    pass


def test_a_subclass_with_its_own_way_to_send_does_it_in_a_thread(run: Run, box: Box) -> None:
    async def main() -> None:
        assert await OwnSending().asend_messages([message()]) == 1
        assert WHERE.take() == THREAD
        async with OwnSending() as connection:
            assert isinstance(connection.connection, smtplib.SMTP)
            assert await connection.asend_messages([message()]) == 1
        WHERE.take()
        assert OwnContext()._here is None
        backend = OwnContext()
        assert await backend.asend_messages([message()]) == 1
        assert backend._here is not None

    run(main)
    assert len(box.messages) == 3


# Failures: what smtplib raises outside a loop is raised on it


def both(run: Run) -> tuple[BaseException, BaseException]:
    """The errors of a backend outside a loop and on it."""
    backend = EmailBackend()
    with pytest.raises(OSError) as plain:  # noqa: PT011
        backend.send_messages([message()])
    backend.close()  # Django's leaves a connection open that it could not log in to
    with pytest.raises(OSError) as bridged:  # noqa: PT011
        run(asend_mail, *TEXT)
    return plain.value, bridged.value


def refuse_sender(box: Box) -> None:
    box.refused.add("a@site.test")


def refuse_recipient(box: Box) -> None:
    box.refused.add("b@site.test")


def refuse_data(box: Box) -> None:
    box.refused.add("DATA")


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (refuse_sender, smtplib.SMTPSenderRefused),
        (refuse_recipient, smtplib.SMTPRecipientsRefused),
        (refuse_data, smtplib.SMTPDataError),
    ],
)
def test_refusals(run: Run, box: Box, prepare: Callable[[Box], None], expected: Any) -> None:
    prepare(box)
    plain, bridged = both(run)
    assert type(plain) is type(bridged) is expected
    assert plain.args == bridged.args

    async def silently() -> None:
        silent = EmailBackend(fail_silently=True)
        async with silent:
            assert await silent.asend_messages([message()]) == 0
            # The conversation can go on.
            box.refused.clear()
            assert await silent.asend_messages([message()]) == 1

    sessions = len(box.sessions)
    run(silently)
    assert len(box.sessions) == sessions + 1


def test_one_recipient_of_two_is_enough(run: Run, box: Box) -> None:
    box.refused.add("b@site.test")
    sent = run(asend_mail, "Hello", "Text", "a@site.test", ["b@site.test", "c@site.test"])
    assert sent == 1
    assert box.messages[0].rcpt_tos == ["c@site.test"]


def test_a_server_that_drops_the_connection_within_a_message(run: Run, box: Box) -> None:
    box.dropping = True
    plain, bridged = both(run)
    assert type(plain) is type(bridged) is smtplib.SMTPServerDisconnected
    assert run(EmailBackend(fail_silently=True).asend_messages, [message()]) == 0

    async def main() -> None:
        async with EmailBackend() as connection:
            with pytest.raises(smtplib.SMTPServerDisconnected):
                await connection.asend_messages([message(), message()])
            box.dropping = False
            assert await connection.asend_messages([message()]) == 1

    run(main)
    assert len(box.messages) == 1


def test_a_server_that_says_nothing_for_too_long(run: Run, box: Box) -> None:
    box.held = True
    with override_settings(EMAIL_TIMEOUT=0.05):
        plain, bridged = both(run)
    assert type(plain) is type(bridged) is smtplib.SMTPServerDisconnected
    box.release()


@pytest.mark.parametrize("backlog", ["refused", "silent"])
def test_a_server_that_does_not_answer(run: Run, backlog: str) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if backlog == "silent":
            listening.listen()
        patience = 20 if backlog == "refused" else 0.05
        with settings(listening.getsockname()[1], EMAIL_TIMEOUT=patience):
            plain, bridged = both(run)
            assert run(asend_mail, *TEXT, True) == 0
    if backlog == "refused":
        assert type(plain) is type(bridged) is ConnectionRefusedError
    else:
        # smtplib's greeting that is late is a connection that is lost; a connect is a timeout.
        assert isinstance(plain, (TimeoutError, smtplib.SMTPServerDisconnected))
        assert isinstance(bridged, (TimeoutError, smtplib.SMTPServerDisconnected))


@pytest.mark.parametrize("greeting", [b"554 no mail here\r\n", b""])
def test_a_server_that_will_not_talk(run: Run, greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(2):
                client, _ = listening.accept()
                with client:
                    client.sendall(greeting)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(100):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        with settings(listening.getsockname()[1]):
            plain, bridged = both(run)
        thread.join()
    expected = smtplib.SMTPConnectError if greeting else smtplib.SMTPServerDisconnected
    assert type(plain) is type(bridged) is expected
    if greeting:
        assert plain.args == bridged.args


# Passwords and TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "mail.pem"
    make_certificate(path)
    return path


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(params=["starttls", "tls"])
def encrypted(request: pytest.FixtureRequest, certificate: Path) -> Iterator[Box]:
    """A server that wants TLS and a password; and the settings for it."""
    context = server_side(certificate)
    wants: dict[str, Any] = {"auth_required": True, "authenticator": check_password}
    option = {"starttls": "EMAIL_USE_TLS", "tls": "EMAIL_USE_SSL"}[request.param]
    if request.param == "starttls":
        server = mail_server(tls_context=context, require_starttls=True, **wants)
    else:
        server = mail_server(tls=context, auth_require_tls=False, **wants)
    options = {option: True, "EMAIL_HOST_USER": "ada", "EMAIL_HOST_PASSWORD": "right"}
    with server as box, settings(box.port, **options):
        yield box


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_tls_and_a_password(
    run: Run, encrypted: Box, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A certificate that nobody knows.
    plain, bridged = both(run)
    assert type(plain) is type(bridged) is ssl.SSLCertVerificationError
    assert plain.args == bridged.args

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert run(asend_mass_mail, [TEXT, TEXT]) == 2
    assert len(encrypted.messages) == 2

    with override_settings(EMAIL_HOST_PASSWORD="wrong"):
        plain, bridged = both(run)
    assert type(plain) is type(bridged) is smtplib.SMTPAuthenticationError
    assert plain.args == bridged.args
    assert len(encrypted.messages) == 2


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_a_client_certificate(
    run: Run, encrypted: Box, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`EMAIL_SSL_CERTFILE` trusts nobody by itself, in Django's backend as here."""
    with override_settings(EMAIL_SSL_CERTFILE=str(certificate), EMAIL_SSL_KEYFILE=None):
        plain, bridged = both(run)
    assert type(plain) is type(bridged) is ssl.SSLCertVerificationError

    class Trusting(EmailBackend):
        @property
        def ssl_context(self) -> ssl.SSLContext:  # type: ignore[override]
            WHERE.note()
            return ssl.create_default_context(cafile=certificate)

    WHERE.take()
    assert run(Trusting().asend_messages, [message()]) == 1
    assert WHERE.take() == THREAD  # it reads files


@pytest.mark.parametrize(
    "wanted", [{"EMAIL_USE_TLS": True}, {"EMAIL_HOST_USER": "a", "EMAIL_HOST_PASSWORD": "b"}]
)
def test_what_the_server_does_not_offer(run: Run, box: Box, wanted: dict[str, Any]) -> None:
    with override_settings(**wanted):
        plain, bridged = both(run)
        assert run(EmailBackend(fail_silently=True).asend_messages, [message()]) == 0
    assert type(plain) is type(bridged) is smtplib.SMTPNotSupportedError


def test_both_kinds_of_tls_are_an_error() -> None:
    with pytest.raises(ValueError, match="mutually exclusive"):
        EmailBackend(use_tls=True, use_ssl=True)


# Cancellation


def test_a_cancelled_send_closes_the_connection(run: Run, box: Box) -> None:
    """The server sees it go, so it keeps nothing; and the backend can be used again."""
    box.held = True

    async def main() -> None:
        connection = EmailBackend()
        await connection.aopen()
        task = asyncio.create_task(connection.asend_messages([message()]))
        await event(box.holding)
        waiting = asyncio.create_task(connection.asend_messages([message()]))
        gone = asyncio.create_task(connection.asend_messages([message()]))
        await asyncio.sleep(0)
        gone.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.CancelledError):
            await gone
        await event(box.lost)
        # Who waited for a turn has it now, over a new connection.
        box.release()
        assert await waiting == 1
        await connection.aclose()

    run(main)
    assert (len(box.messages), len(box.sessions)) == (1, 2)


@pytest.mark.parametrize("timing", TIMINGS)
def test_a_cancellation_at_any_wait_arrives(run: Run, box: Box, timing: Timing) -> None:
    """One that comes together with the server's answer as well."""

    async def main() -> int:
        for point in itertools.count(1):
            cut = Cut(asend_mail(*TEXT), range(point, point + 1), timing)
            task = asyncio.create_task(cut.run())
            await asyncio.wait([task])
            if not cut.cancelled:
                assert await task == 1
                return point
            assert task.cancelled(), f"at {point}: {task}"
        raise AssertionError

    assert run(main) > 5


def test_a_deadline(run: Run, box: Box) -> None:
    box.held = True

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                sending = asyncio.ensure_future(event(box.holding))
                sending.add_done_callback(
                    lambda _: deadline.reschedule(asyncio.get_running_loop().time())
                )
                await asend_mail(*TEXT)
        await event(box.lost)

    run(main)
    assert box.messages == []


def test_a_coroutine_that_is_closed_while_it_sends(run: Run, box: Box) -> None:
    box.held = True

    async def main() -> None:
        connection = EmailBackend()
        await connection.aopen()
        task = asyncio.create_task(connection.asend_messages([message()]))
        await event(box.holding)
        coroutine: Any = task.get_coro()
        coroutine.close()
        await event(box.lost)
        task.cancel()
        await asyncio.wait([task])
        box.release()
        assert await connection.asend_messages([message()]) == 1
        await connection.aclose()

    run(main)


# Other backends


def test_locmem_is_in_place(run: Run, threads: Counts) -> None:
    with settings(0, EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend"):
        mail.outbox = []

        async def main() -> None:
            assert await asend_mail(*TEXT) == 1
            assert await message().asend() == 1
            await amail_admins("Help", "Text")
            async with mail.get_connection() as connection:
                assert await connection.asend_messages([message()]) == 1

        str(DNS_NAME)
        threads.clear()
        run(main)
        threads.assert_none()
        assert [sent.subject for sent in mail.outbox] == [
            "Hello", "Hello", "[Django] Help", "Hello",
        ]  # fmt: skip


def test_files_are_written_in_a_thread(run: Run, tmp_path: Path, threads: Counts) -> None:
    with settings(
        0,
        EMAIL_BACKEND="django.core.mail.backends.filebased.EmailBackend",
        EMAIL_FILE_PATH=str(tmp_path),
    ):
        assert run(asend_mail, *TEXT) == 1
    assert threads.submitted
    assert "Subject: Hello" in next(tmp_path.iterdir()).read_text()


# Reports of errors


async def broken(request: Any) -> HttpResponse:
    raise ZeroDivisionError


urlpatterns = [path("broken/", broken)]


def test_a_report_of_an_error_in_an_async_view_does_not_block(
    run: Run, box: Box, sqlite: Any
) -> None:
    box.held = True
    logger = logging.getLogger("django.request")
    handler = AdminEmailHandler()
    logger.addHandler(handler)

    async def main() -> None:
        application = get_asgi_application()
        async with Heartbeat() as heart:
            task = asyncio.create_task(fetch(application, "/broken/"))
            await event(box.holding)
            await heart.more(100)
            assert not task.done()
            box.release()
            assert (await task).status == 500

    try:
        with override_settings(ROOT_URLCONF=__name__):
            run(main)
    finally:
        logger.removeHandler(handler)
    assert "ERROR" in box.subjects[0]


def test_without_aiosmtplib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "aiosmtplib", None)
    monkeypatch.delitem(sys.modules, "nuages.mail.client")
    with pytest.raises(ImportError, match=r"nuages\[mail\]"):
        importlib.import_module("nuages.mail.client")


class Silent(BaseEmailBackend):
    def send_messages(self, email_messages: Any) -> None:  # type: ignore[override]
        list(email_messages)


def test_a_backend_that_does_not_say_how_many_it_sent(run: Run) -> None:
    run(message(connection=Silent()).asend)


def test_messages_that_are_sent_over_the_same_connection_while_others_are(
    run: Run, box: Box
) -> None:
    backend = EmailBackend()

    def messages() -> Iterator[mail.EmailMessage]:
        backend.open()
        message(connection=backend).send()
        yield message()
        yield message()

    async def main() -> None:
        async with asyncio.timeout(30):
            sent = await asyncio.gather(
                backend.asend_messages(messages()), backend.asend_messages([message()])
            )
        assert sent == [2, 1]

    run(main)
    assert len(box.messages) == 4
