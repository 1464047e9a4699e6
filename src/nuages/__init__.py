"""Nuages: Django's async stack, natively on the event loop.

Add `"nuages"` to `INSTALLED_APPS` and use one of the engines of `nuages.db.backends`; every
`await` of Django's ORM is then real. Importing this package has no side effects.
"""

from nuages.bridge import on_loop
from nuages.bridge.offloading import off_loop

__all__ = ["__version__", "off_loop", "on_loop"]

__version__ = "0.1.0.dev0"
