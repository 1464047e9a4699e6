"""Settings of the project; the test gives the database and NUAGES."""

from __future__ import annotations

import json
import os

SECRET_KEY = "tenants"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ALLOWED_HOSTS = ["*"]
DATABASES = {"default": json.loads(os.environ["TENANTS_DATABASE"])}
ORIGINAL_BACKEND = "nuages.db.backends.postgresql"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
TENANT_MODEL = "customers.Client"
TENANT_DOMAIN_MODEL = "customers.Domain"
TENANT_LIMIT_SET_CALLS = os.environ["TENANTS_LIMIT"] == "1"
SHARED_APPS = [
    "nuages",
    "django_tenants",
    "tests.tenants.customers",
    "django.contrib.contenttypes",
]
TENANT_APPS = ["tests.tenants.notes"]
INSTALLED_APPS = [*SHARED_APPS, *TENANT_APPS]
MIDDLEWARE = ["django_tenants.middleware.main.TenantMainMiddleware"]
ROOT_URLCONF = "tests.tenants.urls"
NUAGES = json.loads(os.environ["TENANTS_NUAGES"])
