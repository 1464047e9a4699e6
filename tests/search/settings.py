"""Django's settings of a worker; where its databases are comes by the environment."""

from tests.search.databases import entries

SECRET_KEY = "search"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "tests.library", "nuages"]
MIGRATION_MODULES = {"contenttypes": None}
DATABASES = entries()
DATABASE_ROUTERS: list[str] = []
# What waits for too long must be told before the program's own deadline.
NUAGES = {"SCOPE_TIMEOUT": 4, "COMMIT_TIMEOUT": 4, "CANCEL_TIMEOUT": 3, "RESET_WARNING": False}
POOL_TIMEOUT = 0.5
LOGGING_CONFIG = None
