"""The settings of the project whose types are checked."""

SECRET_KEY = "for type checkers only"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "shop",
    "magazines",
    "nuages",
]
DATABASES = {
    "default": {"ENGINE": "nuages.db.backends.sqlite3", "NAME": ":memory:"},
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
