"""Mail from coroutines: the async twins of Django's functions, and a backend for SMTP.

`nuages.mail.smtp.EmailBackend` talks to the server on the loop. With any other backend the twins
send from a thread (but not with Django's locmem and dummy, which do not block).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["amail_admins", "amail_managers", "asend_mail", "asend_mass_mail"]

if TYPE_CHECKING:
    from nuages.mail.sending import amail_admins, amail_managers, asend_mail, asend_mass_mail
else:

    def __getattr__(name: str) -> object:
        # Looked up when first used, so that importing the package needs none of Django.
        if name in __all__:
            from nuages.mail import sending

            return getattr(sending, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
