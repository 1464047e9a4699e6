"""Settings for all Django subjects. They differ in three things, which benchmarks.subjects sets.

BENCH_STACK: "stock", "stock-pool" or "nuages" (engine, app and pool); BENCH_MIDDLEWARE: "default"
or "none"; BENCH_SYNC_VIEWS: "loop" for Nuages' mode of that name. All else is startproject's.
"""

import os
from urllib.parse import unquote, urlsplit

from benchmarks.works import POOL_SIZE

STACK = os.environ["BENCH_STACK"]
DATABASE = urlsplit(os.environ["BENCH_DATABASE_URL"])

DEBUG = False
SECRET_KEY = "only for benchmarks, never for a site"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "benchmarks.site.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "benchmarks.site",
]

# startproject's seven.
MIDDLEWARE = {
    "default": [
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
    "none": [],
}[os.environ["BENCH_MIDDLEWARE"]]

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
    },
]

POOL = {"min_size": 0, "max_size": POOL_SIZE, "timeout": 30}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": DATABASE.path[1:],
        "USER": DATABASE.username or "",
        "PASSWORD": unquote(DATABASE.password or ""),
        "HOST": DATABASE.hostname or "",
        "PORT": DATABASE.port or "",
        "OPTIONS": {},
    }
}

if STACK == "stock":
    # One thread for each request means one connection for each request, whatever this says.
    DATABASES["default"]["CONN_MAX_AGE"] = None
elif STACK == "stock-pool":
    DATABASES["default"]["OPTIONS"] = {"pool": POOL}
elif STACK == "nuages":
    DATABASES["default"] |= {
        "ENGINE": "nuages.db.backends.postgresql",
        "OPTIONS": {"pool": POOL},
    }
    INSTALLED_APPS.append("nuages")
    if mode := os.environ.get("BENCH_SYNC_VIEWS"):
        NUAGES = {"SYNC_VIEWS": mode}
else:
    raise ValueError(f"BENCH_STACK is {STACK!r}, which benchmarks.site does not know.")

# Nothing is logged for a request that succeeds; what goes wrong must be seen.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {"django": {"handlers": [], "level": "WARNING", "propagate": True}},
}
