"""Django's settings of the site; where the database is comes by the environment."""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "BANK_DATABASE"
ENTRY: dict[str, Any] = json.loads(os.environ[VARIABLE])

SECRET_KEY = "bank"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.bank.urls"
INSTALLED_APPS = ["tests.bank", "nuages"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
]
POOL = {"max_size": 12, "timeout": 10, "reconnect_timeout": 10}
DATABASES = {
    "default": ENTRY
    | {"OPTIONS": ENTRY.get("OPTIONS", {}) | {"pool": POOL}, "ATOMIC_REQUESTS": True}
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "ERROR"},
}
