"""Who has a schema, and under which host."""

from __future__ import annotations

from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):  # type: ignore[misc]
    """A tenant; saving it makes its schema."""


class Domain(DomainMixin):  # type: ignore[misc]
    """A host of a tenant."""
