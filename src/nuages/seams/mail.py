"""Mail: what talks to a server, writes to a stream or asks DNS is handed to a thread.

`EmailMessage.send()`, `send_mass_mail()`, `mail_admins()` and `AdminEmailHandler` all end in a
mail backend's `send_messages()`, where the message is built too.
"""

from __future__ import annotations

from nuages.seams.handoff import family, handed
from nuages.seams.table import Seam


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        family(
            "django.core.mail.backends.base:BaseEmailBackend",
            ("open", "close", "send_messages"),
            "SMTP, a file, a terminal or a provider's API: it may take seconds. Everything that "
            "sends mail calls these three.",
            (f"django.core.mail.backends.{name}" for name in ("base", "dummy", "locmem")),
        ),
        handed(
            "django.core.mail.utils:CachedDnsName.get_fqdn",
            "(self)",
            "The host's name is asked of DNS at its first use, for a Message-ID say.",
        ),
    ]
