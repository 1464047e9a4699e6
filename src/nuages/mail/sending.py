"""The functions of `django.core.mail`, awaited. They take what the installed Django's take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from django.core import mail

from nuages.bridge import run_on_loop

P = ParamSpec("P")
T = TypeVar("T")


def _twin(function: Callable[P, T], doc: str) -> Callable[P, Coroutine[Any, Any, T]]:
    @functools.wraps(function)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> T:
        return await run_on_loop(function, args, kwargs)

    twin.__name__ = twin.__qualname__ = f"a{function.__name__}"
    twin.__module__ = __name__
    twin.__doc__ = doc
    return twin


_RAISES = """

    Raises what Django's raises with the same backend: `smtplib.SMTPException` and OSError for
    SMTP. A cancellation ends the conversation with the server where the backend is
    `nuages.mail.smtp.EmailBackend`; elsewhere it is raised when the thread has sent.
    """

asend_mail = _twin(
    mail.send_mail,
    """Send one message, `send_mail()` awaited; return how many were sent, 0 or 1.""" + _RAISES,
)
asend_mass_mail = _twin(
    mail.send_mass_mail,
    """Send messages over one connection, `send_mass_mail()` awaited; return how many were sent."""
    + _RAISES,
)
amail_admins = _twin(
    mail.mail_admins,
    """Send a message to the ADMINS, `mail_admins()` awaited.""" + _RAISES,
)
amail_managers = _twin(
    mail.mail_managers,
    """Send a message to the MANAGERS, `mail_managers()` awaited.""" + _RAISES,
)
