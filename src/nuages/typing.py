"""The types of what Nuages adds to Django's classes, for type checkers alone.

At run time Django's own classes have these methods (`nuages.seams`), and the classes here are
empty, or Django's. mypy adds them to Django's classes by `nuages.mypy`. A checker without plugins,
pyright say, is told by hand: a project inherits them, behind Django's class, or uses `QuerySet` and
`Manager` of this module in place of Django's (docs/typing.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, AnyStr, Generic, TypeVar

from django.db import models

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
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    # Any: what a storage opens, and a model's values, have any type; so say Django's stubs.
    from typing import IO, Any, Self

    from django.core.files import File
    from django.core.mail import EmailMessage
    from django.db.models.expressions import Combinable
    from django.db.models.query import Prefetch
    from typing_extensions import TypeVar as _TypeVar

    Model_co = _TypeVar("Model_co", bound=models.Model, covariant=True)
    Row_co = _TypeVar("Row_co", covariant=True, default=Model_co)
else:
    Model_co = TypeVar("Model_co", covariant=True)
    Row_co = TypeVar("Row_co", covariant=True)

T_co = TypeVar("T_co", covariant=True)


class AsyncQuerySet(Generic[T_co]):
    """A queryset whose rows are `T_co`."""

    if TYPE_CHECKING:

        async def alist(self) -> list[T_co]: ...
        def aselect_related(self, *fields: str | None) -> Self: ...
        def aprefetch_related(
            self, *lookups: str | Prefetch[Any, Any, Any] | None
        ) -> Self: ...


class AsyncManager(Generic[Model_co]):
    """A manager of `Model_co`, related managers included."""

    if TYPE_CHECKING:

        async def alist(self) -> list[Model_co]: ...
        # With nuages.mypy: what select_related() and prefetch_related() of the manager return.
        def aselect_related(
            self, *fields: str | None
        ) -> models.QuerySet[Model_co, Model_co]: ...
        def aprefetch_related(
            self, *lookups: str | Prefetch[Any, Any, Any] | None
        ) -> models.QuerySet[Model_co, Model_co]: ...


class AsyncRawQuerySet(Generic[T_co]):
    """What `raw()` returns."""

    if TYPE_CHECKING:

        async def alist(self) -> list[T_co]: ...
        def __aiter__(self) -> AsyncIterator[T_co]: ...


class AsyncModel:
    """An instance of a model. Its relations to one object are declared one by one."""

    if TYPE_CHECKING:

        async def afull_clean(
            self,
            exclude: Collection[str] | None = None,
            validate_unique: bool = True,
            validate_constraints: bool = True,
        ) -> None: ...


class AsyncForm:
    """A form, whose validation may query."""

    if TYPE_CHECKING:

        async def ais_valid(self) -> bool: ...
        async def afull_clean(self) -> None: ...


class AsyncModelForm(Generic[T_co]):
    """A form that saves a `T_co`."""

    if TYPE_CHECKING:

        async def asave(self, commit: bool = True) -> T_co: ...
        async def asave_m2m(self) -> None: ...


class AsyncFormSet:
    """A set of forms."""

    if TYPE_CHECKING:

        async def ais_valid(self) -> bool: ...
        async def afull_clean(self) -> None: ...


class AsyncModelFormSet(Generic[T_co]):
    """A set of forms that saves instances of `T_co`."""

    if TYPE_CHECKING:

        async def asave(self, commit: bool = True) -> list[T_co]: ...
        async def asave_m2m(self) -> None: ...


class AsyncStorage:
    """A storage of files."""

    if TYPE_CHECKING:

        async def aopen(self, name: str, mode: str = "rb") -> File[Any]: ...
        async def asave(
            self, name: str | None, content: IO[Any], max_length: int | None = None
        ) -> str: ...
        async def adelete(self, name: str) -> None: ...
        async def aexists(self, name: str) -> bool: ...
        async def asize(self, name: str) -> int: ...
        async def alistdir(self, path: str) -> tuple[list[str], list[str]]: ...
        async def aurl(self, name: str) -> str: ...
        async def aget_available_name(
            self, name: str, max_length: int | None = None
        ) -> str: ...
        async def aget_accessed_time(self, name: str) -> datetime: ...
        async def aget_created_time(self, name: str) -> datetime: ...
        async def aget_modified_time(self, name: str) -> datetime: ...


class AsyncFile(Generic[AnyStr]):
    """An open file, of bytes or text."""

    if TYPE_CHECKING:

        async def aread(self, size: int = -1) -> AnyStr: ...
        async def awrite(self, data: AnyStr) -> int: ...
        async def aclose(self) -> None: ...
        async def asize(self) -> int: ...
        def achunks(self, chunk_size: int | None = None) -> AsyncIterator[AnyStr]: ...
        def __aiter__(self) -> AsyncIterator[AnyStr]: ...
        async def __aenter__(self) -> Self: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_value: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...


class AsyncFieldFile:
    """The file of a model's field."""

    if TYPE_CHECKING:

        async def aopen(self, mode: str = "rb") -> Self: ...
        async def asave(self, name: str, content: File[Any], save: bool = True) -> None: ...
        async def adelete(self, save: bool = True) -> None: ...


class AsyncEmailMessage:
    """A message."""

    if TYPE_CHECKING:

        async def asend(self, fail_silently: bool = False) -> int: ...


class AsyncEmailBackend:
    """A connection to what sends messages."""

    if TYPE_CHECKING:

        async def asend_messages(self, email_messages: Sequence[EmailMessage]) -> int: ...
        async def aopen(self) -> bool | None: ...
        async def aclose(self) -> None: ...
        async def __aenter__(self) -> Self: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_value: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...


class AsyncQueriesContext:
    """What counts or captures queries, in tests."""

    if TYPE_CHECKING:

        async def __aenter__(self) -> Self: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_value: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...


if TYPE_CHECKING:

    class QuerySet(models.QuerySet[Model_co, Row_co], AsyncQuerySet[Row_co]):
        """Django's QuerySet, with what Nuages adds to it."""

        # Django's stubs give fields and expressions no better type.
        def values(  # type: ignore[override]
            self, *fields: str | Combinable, **expressions: Any
        ) -> QuerySet[Model_co, dict[str, Any]]: ...
        def values_list(  # type: ignore[override]
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
        def aprefetch_related(
            self, *lookups: str | Prefetch[Any, Any, Any] | None
        ) -> QuerySet[Model_co]: ...

else:
    QuerySet = models.QuerySet
    Manager = models.Manager
