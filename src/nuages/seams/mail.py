"""Mail: code that talks to a server, writes to a stream or asks DNS is handed to a thread.

`EmailMessage.send()`, `send_mass_mail()`, `mail_admins()` and `AdminEmailHandler` all end in a
mail backend's `send_messages()`, where the message is built too. `nuages.mail.smtp` awaits by
itself.

Messages and backends get the async twins of their methods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from nuages.bridge import run_on_loop
from nuages.seams.table import Seam
from nuages.seams.to_thread import family, in_thread_on_loop


async def asend(self: Any, *args: Any, **kwargs: Any) -> int:
    """Send the message and return 1, or 0 where there is nobody to send it to: `send()`, awaited.

    It takes what `send()` takes in the installed version of Django, and raises what that raises.
    """
    return int(await run_on_loop(self.send, args, kwargs) or 0)


async def asend_messages(self: Any, email_messages: Sequence[Any]) -> int:
    """Send messages and return how many were sent: `send_messages()`, awaited."""
    return int(await run_on_loop(self.send_messages, (email_messages,), {}) or 0)


async def aopen(self: Any) -> Any:
    """Open the connection and return whether a new one was needed: `open()`, awaited."""
    return await run_on_loop(self.open, (), {})


async def aclose(self: Any) -> None:
    """Close the connection: `close()`, awaited."""
    await run_on_loop(self.close, (), {})


async def __aenter__(self: Any) -> Any:
    """Open the connection, for the length of the block: `with`, awaited."""
    return await run_on_loop(self.__enter__, (), {})


async def __aexit__(self: Any, *error: Any) -> None:
    """Close the connection."""
    await run_on_loop(self.__exit__, error, {})


def _get_fqdn(original: Any) -> Any:
    asks = in_thread_on_loop(original)

    @functools.wraps(original)
    def get_fqdn(self: Any) -> Any:
        # Every message has the host's name in its Message-ID; the name is asked for once.
        return original(self) if hasattr(self, "_fqdn") else asks(self)

    return get_fqdn


def _put(function: Any) -> Callable[[Any], Any]:
    return lambda original: function


def seams() -> list[Seam]:
    """Return this area's seams."""
    backend = "django.core.mail.backends.base:BaseEmailBackend"
    added: list[tuple[str, Any, str]] = [
        ("django.core.mail.message:EmailMessage", asend, "send()"),
        (backend, asend_messages, "send_messages()"),
        (backend, aopen, "open()"),
        (backend, aclose, "close()"),
        (backend, __aenter__, "the context manager"),
        (backend, __aexit__, "the context manager"),
    ]
    return [
        family(
            backend,
            ("open", "close", "send_messages"),
            "SMTP, a file, a terminal or a provider's API: it may take seconds. Everything that "
            "sends mail calls these three.",
            (
                *(f"django.core.mail.backends.{name}" for name in ("base", "dummy", "locmem")),
                "nuages.mail.smtp",
            ),
        ),
        Seam(
            "django.core.mail.utils:CachedDnsName.get_fqdn",
            "The host's name is asked of DNS at its first use, for a Message-ID say.",
            _get_fqdn,
            "(self)",
        ),
        *(
            Seam(
                f"{owner}.{function.__name__}",
                f"The async twin of {twin}.",
                _put(function),
                new=True,
            )
            for owner, function, twin in added
        ),
    ]
