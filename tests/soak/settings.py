"""Django's settings of the site; the servers' addresses come by the environment."""

from __future__ import annotations

import json
import os
from typing import Any

_given: dict[str, Any] = json.loads(os.environ["SOAK_SITE"])

SECRET_KEY = "soak"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.soak.site"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "tests.library",
    "nuages",
]
MIGRATION_MODULES = {"contenttypes": None, "auth": None, "sessions": None, "admin": None}
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

# What is idle goes soon, so that the end can be told from a pool that is large.
_POOL = {"min_size": 2, "max_size": 12, "max_idle": 3, "timeout": 60}
_ENTRY: dict[str, Any] = _given["database"]
DATABASES: dict[str, Any] = {
    "default": _ENTRY | {"OPTIONS": {"pool": _POOL}},
    # The same database over a proxy that cuts its connections.
    "cut": _ENTRY
    | {"PORT": _given["proxy"], "OPTIONS": {"pool": _POOL | {"min_size": 0, "max_size": 6}}},
}
DATABASE_ROUTERS: list[str] = []
CACHES = {"default": {"BACKEND": "nuages.cache.redis.RedisCache", "LOCATION": _given["cache"]}}
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
# The load is about requests, not about computing hashes.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Uploads go to files by way of a thread.
FILE_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 1024 * 1024

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "tests.soak.gauges.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    # Django's own handlers would write each record again.
    "loggers": {"django": {"handlers": [], "level": "INFO", "propagate": True}},
}
