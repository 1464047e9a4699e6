"""The methods that Nuages adds to Django's classes, as type checkers see them.

At run time Django's own classes have them (`nuages.seams`), and the classes here are empty.
`nuages.mypy` makes each a base of its class of Django's, for which mypy must know this module
before any of Django's: so it imports nothing of Django, and has protocols for arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, AnyStr, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from datetime import datetime
    from types import TracebackType

    # Any: a storage's file is of bytes or of text; its name does not tell which.
    from typing import IO, Any, Protocol, Self

    class Prefetch(Protocol):
        """A `django.db.models.Prefetch`."""

        prefetch_through: str
        prefetch_to: str

    class Message(Protocol):
        """A `django.core.mail.EmailMessage`."""

        def recipients(self) -> list[str]: ...


T_co = TypeVar("T_co", covariant=True)


class AsyncQuerySet(Generic[T_co]):
    """A queryset whose rows are `T_co`."""

    if TYPE_CHECKING:

        async def alist(self) -> list[T_co]: ...
        def aselect_related(self, *fields: str | None) -> Self: ...
        def aprefetch_related(self, *lookups: str | Prefetch | None) -> Self: ...


class AsyncManager(Generic[T_co]):
    """A manager of `T_co`, related managers included."""

    if TYPE_CHECKING:

        async def alist(self) -> list[T_co]: ...
        # nuages.mypy finds what these return: what select_related() and prefetch_related() do.
        def aselect_related(self, *fields: str | None) -> Any: ...
        def aprefetch_related(self, *lookups: str | Prefetch | None) -> Any: ...


class AsyncRawQuerySet(Generic[T_co]):
    """The result of `raw()`."""

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
        # nuages.mypy finds what this returns: what open() does.
        async def aopen(self, name: str, mode: str = "rb") -> Any: ...
        async def asave(
            self, name: str | None, content: IO[Any], max_length: int | None = None
        ) -> str: ...
        async def adelete(self, name: str) -> None: ...
        async def aexists(self, name: str) -> bool: ...
        async def asize(self, name: str) -> int: ...
        async def alistdir(self, path: str) -> tuple[list[str], list[str]]: ...
        async def aurl(self, name: str) -> str: ...
        async def aget_available_name(self, name: str, max_length: int | None = None) -> str: ...
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
        async def asave(self, name: str, content: IO[Any], save: bool = True) -> None: ...
        async def adelete(self, save: bool = True) -> None: ...


class AsyncEmailMessage:
    """A message."""

    if TYPE_CHECKING:

        async def asend(self, fail_silently: bool = False) -> int: ...


class AsyncEmailBackend:
    """A connection to a service that sends messages."""

    if TYPE_CHECKING:

        async def asend_messages(self, email_messages: Sequence[Message]) -> int: ...
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
    """A context that counts or captures queries, in tests."""

    if TYPE_CHECKING:

        async def __aenter__(self) -> Self: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_value: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...


class AsyncAtomic:
    """A block of `django.db.transaction.atomic`."""

    if TYPE_CHECKING:

        async def __aenter__(self) -> None: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_value: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...
