"""Turns DATABASE_URL into Django's DATABASES entry. Owns nothing else."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

SQLITE = "nuages.db.backends.sqlite3"
POSTGRESQL = "nuages.db.backends.postgresql"


def database_from_url(url: str, default_file: Path) -> dict[str, Any]:
    """Return the settings of the database that ``url`` names.

    An empty ``url`` means the SQLite file ``default_file``. User, password, host and name are
    percent-decoded; what stands after ``?`` goes to OPTIONS (``?sslmode=require``).
    """
    if not url:
        return {"ENGINE": SQLITE, "NAME": default_file}
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Neither the URL nor the parser's words are shown: both may hold a piece of the password.
        raise ImproperlyConfigured(
            "DATABASE_URL cannot be read: its port is not a number, or a special character in"
            " its user, password or host is not percent-encoded (/ is %2F, @ is %40)."
        ) from None
    path = unquote(parts.path)
    if parts.scheme == "sqlite" and not parts.netloc and len(path) > 1:
        return {"ENGINE": SQLITE, "NAME": path.removeprefix("/")}
    if parts.scheme in {"postgresql", "postgres"}:
        return {
            "ENGINE": POSTGRESQL,
            "NAME": path.removeprefix("/"),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": unquote(parts.hostname or ""),
            "PORT": str(port or ""),
            "OPTIONS": dict(parse_qsl(parts.query)),
        }
    raise ImproperlyConfigured(
        f"DATABASE_URL has the scheme {parts.scheme!r}, which this site does not know."
        " Use postgresql://user:password@host:port/name, or sqlite:////absolute/path.sqlite3,"
        " or leave it unset for the SQLite file beside manage.py."
    )
