"""`get()` by plain equality, without building and compiling its query anew each time.

`Article.objects.get(pk=7)` spends most of its time on clones, joins and SQL text that are the same
for every key. Here the text is kept by model, database and names of the arguments. Django makes
the text, the first time; each time the values are prepared by their fields, and the rows are
fetched and made into instances by Django's own code. Whatever is not plain takes Django's way: a
queryset with anything on it, a class that overrides how querysets filter, a relation's object, a
custom lookup, None, a bool.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.models import BooleanField, Q, QuerySet
from django.db.models.lookups import Exact, IntegerFieldExact
from django.db.models.query import MAX_GET_RESULTS, ModelIterable
from django.db.models.sql import Query
from django.db.models.sql.compiler import SQLCompiler

from nuages.db.backends.base.base import LoopWrapper

_ATTRIBUTE = "_nuages_gets"
"""On a model's `_meta`: what was compiled for the model, and goes with it."""

MOST = 100
"""How many statements are kept for one model."""

_PLAIN = frozenset(
    {int, str, uuid.UUID, decimal.Decimal, datetime.datetime, datetime.date, datetime.time}
)
_LOOKUPS = (Exact, IntegerFieldExact)
_STEPS = (
    "_chain", "_clone", "_fetch_all", "_filter_or_exclude", "_filter_or_exclude_inplace", "db",
    "filter", "order_by", "query", "__len__",
)  # fmt: skip
_FRESH = frozenset(vars(Query(None))) | {"_annotation_select_cache", "filter_is_sticky"}
"""The names in the `__dict__` of a query that was cloned, if at all, and not otherwise touched."""

Arguments = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Statement:
    """The SQL compiled for one shape of `get()`, and what running it takes."""

    sql: str
    fields: tuple[Any, ...]
    """The fields of the arguments, in their order."""
    columns: Any
    """The model's fields when the statement was compiled: another list, another statement."""
    compiler: type[SQLCompiler]
    attributes: dict[str, Any]
    """The attributes of the compiler that compiled it, without its connection."""
    is_converted: bool


def find(queryset: Any, args: Any, kwargs: dict[str, Any]) -> list[Any] | None:
    """Return the instances that `queryset.get(*args, **kwargs)` finds; None to ask Django."""
    arguments = _arguments(args, kwargs)
    if arguments is None or not _is_untouched(queryset):
        return None
    alias = queryset.db
    connection = connections[alias]
    if not isinstance(connection, LoopWrapper):
        return None
    statement = _statement(queryset, alias, connection, args, kwargs, arguments)
    if statement is None:
        return None
    params = _params(statement.fields, arguments, connection)
    if params is None:
        return None
    compiler: Any = statement.compiler.__new__(statement.compiler)
    vars(compiler).update(statement.attributes, connection=connection, using=alias)
    compiler.as_sql = partial(_same, (statement.sql, params))
    if not statement.is_converted:
        compiler.get_converters = _nothing
    prepared: Any = _Prepared(queryset, alias, compiler)
    return list(ModelIterable(prepared))


def _same(value: Any) -> Any:
    return value


def _nothing(expressions: Any) -> dict[int, Any]:
    return {}


class _Prepared:
    """A queryset as ModelIterable uses it, with the compiler there already."""

    def __init__(self, queryset: Any, alias: str, compiler: Any) -> None:
        self.db = alias
        self._compiler = compiler
        self._queryset = queryset

    @property
    def query(self) -> Any:
        return self  # not an attribute, which would be a cycle

    def get_compiler(self, using: str) -> Any:
        return self._compiler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queryset, name)


def _arguments(args: Any, kwargs: dict[str, Any]) -> Arguments | None:
    """The names and values that are compared, in the order that Django puts them into a Q."""
    if not args:
        found: Any = sorted(kwargs.items())
    elif len(args) == 1 and not kwargs and type(args[0]) is Q:
        # A foreign key asks for its object so.
        (condition,) = args
        if condition.negated or condition.connector != Q.AND:
            return None
        found = condition.children
    else:
        return None
    for argument in found:
        if type(argument) is not tuple or type(argument[1]) not in _PLAIN:
            return None
    return found or None


@lru_cache(maxsize=512)
def _is_plain(kind: Any) -> bool:
    """Tell whether querysets of this class are filtered and fetched by Django's own methods."""
    return all(getattr(kind, name) is getattr(QuerySet, name) for name in _STEPS)


def _is_untouched(queryset: Any) -> bool:
    """Tell whether `queryset` is all objects of its model, as a manager gives them."""
    if queryset._deferred_filter or queryset._defer_next_filter:
        return False
    kind: Any = type(queryset)
    if type(queryset._query) is not Query or not _is_plain(kind):
        return False
    query: Any = queryset._query
    return (
        not queryset._sticky_filter
        and vars(query).keys() <= _FRESH
        and not query.where.children
        and not query.alias_map
        and not query.annotations
        and not query.extra
        and not query._filtered_relations
        and not query.external_aliases
        and not query.filter_is_sticky
        and query.alias_cols
        and not queryset._prefetch_related_lookups
        and not queryset._known_related_objects
        and queryset._iterable_class is ModelIterable
        and queryset._fields is None
    )


def _statement(
    queryset: Any, alias: str, connection: Any, args: Any, kwargs: Any, arguments: Arguments
) -> Statement | None:
    """The statement for these arguments, made if need be; None where there can be none."""
    meta = queryset.model._meta
    known: dict[Any, Statement] = vars(meta).setdefault(_ATTRIBUTE, {})
    names = tuple(name for name, _ in arguments)
    # MySQL's backend converts datetimes only where time zones are in use.
    key = (alias, type(connection), meta.db_table, bool(args), names, settings.USE_TZ)
    statement = known.get(key)
    if statement is None or statement.columns is not meta.concrete_fields:
        statement = _compiled(queryset, connection, args, kwargs, arguments)
        # Only statements are kept: other names may come from outside, get(**form_data).
        if statement is not None and (key in known or len(known) < MOST):
            known[key] = statement
    return statement


def _compiled(
    queryset: Any, connection: Any, args: Any, kwargs: Any, arguments: Arguments
) -> Statement | None:
    meta = queryset.model._meta
    if meta.parents or meta.swapped:
        return None
    fields = tuple(_field(meta, name) for name, _ in arguments)
    if None in fields:
        return None
    params = _params(fields, arguments, connection)
    if params is None:
        return None
    query = queryset.filter(*args, **kwargs).order_by().query
    query.set_limits(high=MAX_GET_RESULTS)
    compiler = query.get_compiler(connection=connection)
    sql, compiled = compiler.as_sql()
    # Without what the statement was compiled from, which holds the first caller's values.
    attributes = vars(compiler) | dict.fromkeys(("connection", "where", "having", "qualify"))
    attributes["query"] = Query(queryset.model)
    if (
        list(map(repr, compiled)) != list(map(repr, params))
        or compiler.klass_info.get("related_klass_infos")
        or compiler.annotation_col_map
        or compiler.has_extra_select
    ):
        return None
    is_converted = bool(compiler.get_converters([each[0] for each in compiler.select]))
    return Statement(sql, fields, meta.concrete_fields, type(compiler), attributes, is_converted)


def _field(meta: Any, name: str) -> Any:
    """The model's own field of that name, if it is compared by Django's plain lookup."""
    if name == "pk":
        field = meta.pk
    else:
        field = next((f for f in meta.concrete_fields if name in (f.name, f.attname)), None)
    if field is None or field not in meta.local_concrete_fields or field.is_relation:
        return None
    if isinstance(field, BooleanField) or field.get_lookup("exact") not in _LOOKUPS:
        return None
    return field


def _params(fields: Any, arguments: Arguments, connection: Any) -> tuple[Any, ...] | None:
    """The values as `Exact` prepares them; None if one needs Django's own way.

    Raises what a field raises for a value that it cannot take, as `filter()` does.
    """
    params = []
    for field, (_, value) in zip(fields, arguments, strict=True):
        prepared = field.get_prep_value(value)
        lookup = field.get_lookup("exact")
        if prepared is None or lookup not in _LOOKUPS:
            return None
        if lookup is IntegerFieldExact:
            low, high = connection.ops.integer_field_range(field.get_internal_type())
            if (low is not None and prepared < low) or (high is not None and prepared > high):
                return None
        params.append(field.get_db_prep_value(prepared, connection, prepared=True))
    return tuple(params)
