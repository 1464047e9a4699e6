"""A project with tests of its own; the environment says on which database."""

import json
import os

SECRET_KEY = "testing"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = json.loads(os.environ["SITE_DATABASES"])
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "notes",
]
if DATABASES["default"]["ENGINE"].startswith("nuages."):
    INSTALLED_APPS.append("nuages")
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "notes.urls"
TEST_RUNNER = "notes.runner.Runner"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
NUAGES = {"SCOPE_TIMEOUT": 5}
