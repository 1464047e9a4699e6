"""A project with django-tenants: a schema for each tenant, on our PostgreSQL engine."""
