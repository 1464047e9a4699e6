"""One SMTP connection on the event loop, for sync code in a bridge, used like `smtplib.SMTP`.

Errors are raised as smtplib raises them, because those are what Django's backend and its users
catch. After any failure that leaves the conversation in the middle, the connection is dropped.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

try:
    import aiosmtplib
except ImportError as error:
    raise ImportError(
        "nuages.mail.smtp.EmailBackend needs aiosmtplib: pip install 'nuages[mail]'."
    ) from error

from nuages.bridge import await_
from nuages.bridge.tasks import uncaught

T = TypeVar("T")


class Account(Protocol):
    """The account that logs in."""

    username: str
    password: str


class Client:
    """A connection to `host`; with `tls` from its first byte. `timeout`: seconds for each step."""

    def __init__(
        self,
        host: str,
        port: int,
        local_hostname: str,
        timeout: float | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._smtp = aiosmtplib.SMTP(
            hostname=host,
            port=port,
            local_hostname=local_hostname,
            timeout=timeout,
            use_tls=tls is not None,
            tls_context=tls,
            start_tls=False,
        )

    @property
    def is_connected(self) -> bool:
        """Tell whether the connection is there, as far as is known."""
        return self._smtp.is_connected

    def connect(self) -> None:
        """Connect and read the greeting."""
        self._wait(self._smtp.connect())

    def starttls(self, context: ssl.SSLContext) -> None:
        """Go on encrypted (RFC 3207), or raise `smtplib.SMTPNotSupportedError`."""
        self._greet()
        if not self._smtp.supports_extension("starttls"):
            raise smtplib.SMTPNotSupportedError("STARTTLS extension not supported by server.")
        self._wait(self._smtp.starttls(tls_context=context))

    def login(self, account: Account) -> None:
        """Log in (RFC 4954), or raise `smtplib.SMTPNotSupportedError`.

        Error reports show the variables of frames, so the password is in none.
        """
        self._greet()
        if not self._smtp.supports_extension("auth"):
            raise smtplib.SMTPNotSupportedError("SMTP AUTH extension not supported by server.")
        self._wait(self._smtp.login(account.username, account.password))

    def sendmail(self, sender: str, recipients: list[str], message: bytes) -> None:
        """Hand over one message; it is sent if at least one recipient was accepted."""
        self._wait(self._smtp.sendmail(sender, recipients, message))

    def quit(self) -> None:
        """Say QUIT and close."""
        self._wait(self._smtp.quit())

    def drop(self) -> None:
        """Close at once; what was not sent yet is never sent."""
        transport: Any = self._smtp.transport
        if transport is not None:
            # close() would first send what is buffered: all of a message that was cancelled.
            transport.abort()
        self._smtp.close()

    def _greet(self) -> None:
        if self._smtp.is_ehlo_or_helo_needed:
            self._wait(self._greeting())

    async def _greeting(self) -> None:
        try:
            await self._smtp.ehlo()
        except aiosmtplib.SMTPHeloError:
            await self._smtp.helo()

    def _wait(self, step: Coroutine[Any, Any, T]) -> T:
        try:
            return await_(uncaught(step))
        except aiosmtplib.SMTPException as error:
            if not isinstance(error, _ANSWERS):
                self.drop()
            failure = as_smtplib(error)
        except BaseException:
            self.drop()
            raise
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame


_ANSWERS = (aiosmtplib.SMTPResponseException, aiosmtplib.SMTPRecipientsRefused)
"""After these both sides know where the conversation stands."""


def as_smtplib(error: aiosmtplib.SMTPException) -> OSError:
    """Return the exception that `smtplib` raises where aiosmtplib raises `error`.

    For a connection that could not be made it is the OSError itself, or TimeoutError when that
    took too long; for one that is lost, or silent for too long later, SMTPServerDisconnected.
    """
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return smtplib.SMTPRecipientsRefused(
            {refused.recipient: (refused.code, _octets(refused)) for refused in error.recipients}
        )
    if isinstance(error, aiosmtplib.SMTPSenderRefused):
        return smtplib.SMTPSenderRefused(error.code, _octets(error), error.sender)
    if isinstance(error, aiosmtplib.SMTPResponseException):
        for theirs, ours in _RESPONSES:
            if isinstance(error, theirs):
                return ours(error.code, _octets(error))
        return smtplib.SMTPResponseException(error.code, _octets(error))
    if isinstance(error, aiosmtplib.SMTPConnectTimeoutError):
        return TimeoutError(error.message)
    if isinstance(error, aiosmtplib.SMTPConnectError):
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, aiosmtplib.SMTPException):
            return cause
        return smtplib.SMTPServerDisconnected(error.message)
    if isinstance(error, (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError)):
        return smtplib.SMTPServerDisconnected(error.message)
    if isinstance(error, aiosmtplib.SMTPNotSupported):
        return smtplib.SMTPNotSupportedError(error.message)
    return smtplib.SMTPException(error.message)


_RESPONSES: tuple[tuple[type, type[smtplib.SMTPResponseException]], ...] = (
    (aiosmtplib.SMTPAuthenticationError, smtplib.SMTPAuthenticationError),
    (aiosmtplib.SMTPConnectResponseError, smtplib.SMTPConnectError),
    (aiosmtplib.SMTPDataError, smtplib.SMTPDataError),
    (aiosmtplib.SMTPHeloError, smtplib.SMTPHeloError),
)


def _octets(error: aiosmtplib.SMTPResponseException) -> bytes:
    return error.message.encode("utf-8", "surrogateescape")
