"""A real SMTP server (aiosmtpd) in a thread of its own, whose every answer a test may decide."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.utils import deprecation

logging.getLogger("mail.log").setLevel(logging.CRITICAL)

# Django 6.1 warns of the settings that MAILERS replaces, obeys them still, and so must we.
_WARNING = "RemovedInDjango2028Warning"
OLD_SETTINGS = (
    [pytest.mark.filterwarnings(f"ignore::{deprecation.__name__}.{_WARNING}")]
    if hasattr(deprecation, _WARNING)
    else []
)
"""The marks of a module whose tests use these settings."""


class Box:
    """What a server got, and how it behaves. Its methods are aiosmtpd's handler hooks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.port = 0
        self.messages: list[Envelope] = []
        self.sessions: list[SMTP] = []
        self.encrypted: list[bool] = []
        self.refused: set[str] = set()
        """Addresses, and "DATA", that are answered 550."""
        self.dropping = False
        """Whether the connection is closed where a message should be taken."""
        self.held = False
        """Whether a message is taken only when `release()` was called."""
        self.holding = threading.Event()
        """Set when a message is held."""
        self.lost = threading.Event()
        """Set when a client is gone whose message was held."""
        self._go = asyncio.Event()

    def release(self) -> None:
        self.loop.call_soon_threadsafe(self._go.set)

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 no such sender"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if "DATA" in self.refused:
            return "550 not this one"
        if self.dropping:
            assert server.transport is not None
            server.transport.abort()  # type: ignore[attr-defined]
            return "250 unheard"
        if self.held:
            self.holding.set()
            try:
                await self._go.wait()
            except asyncio.CancelledError:
                self.lost.set()
                raise
        self.encrypted.append(session.ssl is not None)
        self.messages.append(envelope)
        return "250 taken"

    @property
    def subjects(self) -> list[str]:
        found = []
        for envelope in self.messages:
            content = envelope.content
            assert isinstance(content, bytes)
            head = content.decode().split("\r\n\r\n")[0]
            found += [line[9:] for line in head.split("\r\n") if line.startswith("Subject: ")]
        return found


def check_password(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    return AuthResult(success=(data.login, data.password) == (b"ada", b"right"), handled=False)


@contextmanager
def mail_server(*, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[Box]:
    """Serve SMTP, encrypted from the first byte with `tls`; options are aiosmtpd's."""
    loop = asyncio.new_event_loop()
    box = Box(loop)
    ready = threading.Event()

    def make() -> SMTP:
        server = SMTP(box, loop=loop, hostname="mail.test", **options)
        box.sessions.append(server)
        return server

    async def serve() -> None:
        server = await loop.create_server(make, "127.0.0.1", 0, ssl=tls)
        box.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await stop.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait([task])
        for session in box.sessions:
            if session.transport is not None:
                session.transport.abort()  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert ready.wait(10)
        yield box
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def make_certificate(path: Path) -> None:
    """Write a key and a certificate for 127.0.0.1, signed by itself, to `path`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    today = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
