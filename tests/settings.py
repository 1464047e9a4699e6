"""Django's settings for our own tests; tests/integration/conftest.py fills the database in."""

SECRET_KEY = "tests"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "tests.library",
    "tests.catalogue",
    "nuages",
]
DATABASES = {
    "default": {"ENGINE": "nuages.db.backends.sqlite3", "NAME": ":memory:"},
}
ROOT_URLCONF = "tests.urls"
MIDDLEWARE: list[str] = []
ALLOWED_HOSTS = ["*"]
MIGRATION_MODULES = {"contenttypes": None, "auth": None, "sessions": None, "admin": None}
