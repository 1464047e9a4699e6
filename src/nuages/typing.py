"""Types for projects: what a checker without plugins is told by hand.

mypy knows by its plugin, `nuages.mypy`, what Nuages adds to Django's classes. Another checker
(pyright, say) knows where a project's class has a base of this module, behind Django's, or where
`QuerySet` and `Manager` stand in place of Django's, which at run time they are (docs/typing.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models

from nuages.additions import (
    AsyncEmailBackend,
    AsyncEmailMessage,
    AsyncFieldFile,
    AsyncFile,
    AsyncForm,
    AsyncFormSet,
    AsyncManager,
    AsyncModel,
    AsyncModelForm,
    AsyncModelFormSet,
    AsyncQueriesContext,
    AsyncQuerySet,
    AsyncRawQuerySet,
    AsyncStorage,
)

__all__ = [
    "AsyncEmailBackend",
    "AsyncEmailMessage",
    "AsyncFieldFile",
    "AsyncFile",
    "AsyncForm",
    "AsyncFormSet",
    "AsyncManager",
    "AsyncModel",
    "AsyncModelForm",
    "AsyncModelFormSet",
    "AsyncQueriesContext",
    "AsyncQuerySet",
    "AsyncRawQuerySet",
    "AsyncStorage",
    "Manager",
    "QuerySet",
]

if TYPE_CHECKING:
    # Any: Django's stubs know no better type of an expression, or of a lookup.
    from typing import Any

    from django.db.models.expressions import Combinable
    from typing_extensions import TypeVar

    from nuages.additions import Prefetch

    Model_co = TypeVar("Model_co", bound=models.Model, covariant=True)
    Row_co = TypeVar("Row_co", covariant=True, default=Model_co)

    class QuerySet(models.QuerySet[Model_co, Row_co], AsyncQuerySet[Row_co]):
        """Django's QuerySet, with what Nuages adds to it."""

        # Django's stubs give fields and expressions no better type.
        def values(
            self, *fields: str | Combinable, **expressions: Any
        ) -> QuerySet[Model_co, dict[str, Any]]: ...
        def values_list(
            self,
            *fields: str | Combinable,
            flat: bool = False,
            named: bool = False,
        ) -> QuerySet[Model_co, Any]: ...

    class Manager(models.Manager[Model_co], AsyncManager[Model_co]):
        """Django's Manager, whose querysets have what Nuages adds to them."""

        def get_queryset(self) -> QuerySet[Model_co]: ...
        def all(self) -> QuerySet[Model_co]: ...
        def none(self) -> QuerySet[Model_co]: ...
        def filter(self, *args: Any, **kwargs: Any) -> QuerySet[Model_co]: ...
        def exclude(self, *args: Any, **kwargs: Any) -> QuerySet[Model_co]: ...
        def order_by(self, *field_names: str | Combinable) -> QuerySet[Model_co]: ...
        def distinct(self, *field_names: str) -> QuerySet[Model_co]: ...
        def select_related(self, *fields: str | None) -> QuerySet[Model_co]: ...
        def prefetch_related(self, *lookups: Any) -> QuerySet[Model_co]: ...
        def annotate(self, *args: Any, **kwargs: Any) -> QuerySet[Model_co]: ...
        def defer(self, *fields: str | None) -> QuerySet[Model_co]: ...
        def only(self, *fields: str) -> QuerySet[Model_co]: ...
        def reverse(self) -> QuerySet[Model_co]: ...
        def using(self, alias: str | None) -> QuerySet[Model_co]: ...
        def aselect_related(self, *fields: str | None) -> QuerySet[Model_co]: ...
        def aprefetch_related(self, *lookups: str | Prefetch | None) -> QuerySet[Model_co]: ...

else:
    QuerySet = models.QuerySet
    Manager = models.Manager
