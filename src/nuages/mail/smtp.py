"""Django's SMTP backend, whose waiting is awaited.

`EMAIL_BACKEND = "nuages.mail.smtp.EmailBackend"`, or a BACKEND of MAILERS (Django 6.1).

Settings, arguments and exceptions are those of `django.core.mail.backends.smtp`, and outside a
bridge (WSGI, commands, threads) it is that backend. In a bridge it speaks SMTP (RFC 5321) through
aiosmtplib, over connections of its own: a socket belongs to its event loop.
"""

from __future__ import annotations

import asyncio
import copy
import smtplib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import getattr_static

from django.core.mail.backends.smtp import EmailBackend as DjangoEmailBackend
from django.core.mail.message import EmailMessage
from django.core.mail.utils import DNS_NAME

from nuages.bridge import await_, current_bridge
from nuages.bridge.offloading import off_loop
from nuages.mail.client import Client

LARGE = 64 * 1024
"""Size in bytes from which a message is built in a thread: base64 of a megabyte takes long."""

_SENDING = ("open", "close", "send_messages", "_send", "connection_class")


class EmailBackend(DjangoEmailBackend):
    """A backend that sends mail by SMTP without blocking the loop.

    A connection that `open()` or a `with` block made is kept for every `send_messages()` of that
    event loop until `close()`; senders that share it take turns. One that was lost meanwhile is
    replaced. A cancelled send drops its connection, so the server discards what it got so far.

    A subclass that overrides how mail is sent (`open`, `close`, `send_messages`, `_send`,
    `connection_class`) is served entirely in Django's way, in a thread.
    """

    _here: _OnLoop | None = None
    """This backend's connection on the event loop that used it last."""

    def open(self) -> bool | None:
        """Connect unless connected; return whether it did, None where that failed silently."""
        if not self._is_native():
            return super().open()
        with self._turn() as here:
            return self._open(here)

    def close(self) -> None:
        """Take leave of the server and close the connection, once nobody sends over it."""
        if not self._is_native():
            super().close()
            return
        bridge = current_bridge()
        assert bridge is not None
        here = self._on_loop()
        if bridge.closing and here.client is not None:
            # Nothing can be awaited any more.
            here.client.drop()
            here.client = None
        if here.client is not None:
            with self._turn():
                self._close(here)

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Send `EmailMessage` objects; return how many were sent."""
        if not self._is_native():
            return super().send_messages(email_messages)
        if not email_messages:
            return 0
        with self._turn() as here:
            opened = self._open(here)
            if opened is None:
                return 0
            sent = 0
            try:
                for message in email_messages:
                    sent += self._send(message)
            finally:
                if opened:
                    self._close(here)
            return sent

    def _open(self, here: _OnLoop) -> bool | None:
        if here.client is not None:
            if here.client.is_connected:
                return False
            here.client.drop()
            here.client = None
        context = None
        if self.use_ssl or self.use_tls:
            context = off_loop(lambda: self.ssl_context)()  # reads files
        client = Client(
            self.host,
            self.port,
            DNS_NAME.get_fqdn(),
            self.timeout,
            context if self.use_ssl else None,
        )
        try:
            client.connect()
            if context is not None and not self.use_ssl:
                client.starttls(context)
            if self.username and self.password:
                client.login(self)
        except OSError:
            client.drop()
            if not self.fail_silently:
                raise
            return None
        except BaseException:
            client.drop()
            raise
        here.client = client
        return True

    def _close(self, here: _OnLoop) -> None:
        client, here.client = here.client, None
        if client is None or not client.is_connected:
            return
        try:
            client.quit()
        except smtplib.SMTPException as error:
            client.drop()
            if not (self.fail_silently or isinstance(error, smtplib.SMTPServerDisconnected)):
                raise

    def _send(self, email_message: EmailMessage) -> bool:
        if not self._is_native():
            return bool(super()._send(email_message))  # type: ignore[misc]
        here = self._on_loop()
        assert here.client is not None
        build = off_loop(self._envelope) if is_large(email_message) else self._envelope
        envelope = build(email_message)
        if envelope is None:
            return False
        try:
            here.client.sendmail(*envelope)
        except smtplib.SMTPException:
            if not self.fail_silently:
                raise
            return False
        return True

    def _envelope(self, email_message: EmailMessage) -> tuple[str, list[str], bytes] | None:
        """Return sender, recipients and text as Django's own `_send()` makes them.

        `_send()` differs between versions of Django; what it would have sent is taken down.
        """
        taker = copy.copy(self)
        taker.connection = _Taker()  # type: ignore[assignment]
        DjangoEmailBackend._send(taker, email_message)  # type: ignore[attr-defined]
        taken: _Taker = taker.connection  # type: ignore[assignment]
        return taken.envelope

    def _is_native(self) -> bool:
        return current_bridge() is not None and all(
            getattr_static(type(self), name) is getattr_static(EmailBackend, name)
            for name in _SENDING
        )

    def _on_loop(self) -> _OnLoop:
        loop = asyncio.get_running_loop()
        if self._here is None or self._here.loop is not loop:
            self._here = _OnLoop(loop)
        return self._here

    @contextmanager
    def _turn(self) -> Iterator[_OnLoop]:
        """Wait until nobody else sends over this backend's connection."""
        here, task = self._on_loop(), asyncio.current_task()
        if here.sender is task:
            # A generator of messages that sends over this connection, as Django's RLock permits.
            yield here
            return
        await_(here.lock.acquire())
        here.sender = task
        try:
            yield here
        finally:
            here.sender = None
            here.lock.release()


class _OnLoop:
    """A backend's connection on one event loop, and the lock of the tasks that send over it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.lock = asyncio.Lock()
        self.sender: asyncio.Task[object] | None = None
        """The task that has the lock."""
        self.client: Client | None = None


class _Taker:
    """A stand-in where `_send()` expects a connection; it takes down what it is given."""

    envelope: tuple[str, list[str], bytes] | None = None

    def sendmail(self, sender: str, recipients: list[str], message: bytes) -> None:
        self.envelope = sender, recipients, message


def is_large(message: EmailMessage) -> bool:
    """Tell whether `message` has `LARGE` bytes or more, or parts of unknown size."""
    total = len(message.body or "")
    for alternative in getattr(message, "alternatives", ()):
        total += len(alternative[0])
    for attachment in message.attachments:
        if not isinstance(attachment, tuple) or not isinstance(attachment[1], (str, bytes)):
            return True
        total += len(attachment[1])
    return total >= LARGE
