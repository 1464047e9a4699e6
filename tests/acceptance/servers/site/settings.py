"""The settings that `startproject` writes, with Nuages; the tests fill in the database."""

import json
import os
from pathlib import Path

BASE_DIR = Path(__file__).parent
SECRET_KEY = "acceptance"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "nuages",
    "tests.acceptance.servers.site",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "tests.acceptance.servers.site.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": json.loads(os.environ["SITE_DATABASE"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
NUAGES = json.loads(os.environ.get("SITE_NUAGES", "{}"))

LOGIN_REDIRECT_URL = "/session/"
STATIC_URL = "static/"
USE_TZ = True
# Fast logins: what is tested is not the hashing.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# Errors go to the server's log, where the tests look for them, but for the one made on purpose.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "unexpected": {"()": "tests.acceptance.servers.site.on_purpose.Unexpected"},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "filters": ["unexpected"]}},
    "loggers": {
        "django": {"handlers": ["console"], "level": "ERROR", "propagate": False},
        "nuages": {"handlers": ["console"], "level": "WARNING", "propagate": False},
        "asyncio": {"handlers": ["console"], "level": "WARNING", "propagate": False},
    },
}
