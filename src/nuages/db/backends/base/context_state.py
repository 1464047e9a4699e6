"""Attributes set on a wrapper, of its context or of its own session; and whom a kept one serves.

A wrapper of the loop is a member of its context's family (`scopes/family.py`). An attribute that
code outside the wrapper sets (`connection.tenant = x`, a replaced `cursor`) is set on the whole
family. What Django and we keep on a wrapper is listed in `OWN`. What a subclass elsewhere sets in
its overrides of the methods in `AT_WORK` (django-tenants notes the search path that it has set)
belongs to the session at hand: to that member alone, and is forgotten with the session.

A member that somebody kept (a closure in a replaced method, say) is called by code of any chain;
the methods that use a session go on with the member that serves the caller.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from django.db import connections
from django.utils.asyncio import async_unsafe

from nuages.db.backends.base.driver import may_do_io
from nuages.db.engines import PREFIX
from nuages.db.scopes.chain import Chain, chain_or_thread, current_chain
from nuages.db.scopes.family import Family
from nuages.db.scopes.tree import current_node
from nuages.exceptions import ScopeEnded, SyncInCoroutine

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper as _Base

    from nuages.db.scopes.scope import Scope
else:
    _Base = object

F = TypeVar("F", bound=Callable[..., Any])

OWN = frozenset(
    {
        # Django's
        *("_thread_ident", "_thread_sharing_count", "_thread_sharing_lock", "alias"),
        *("atomic_blocks", "autocommit", "close_at", "closed_in_transaction", "commit_on_exit"),
        *("connection", "errors_occurred", "execute_wrappers", "force_debug_cursor"),
        *("health_check_done", "health_check_enabled", "in_atomic_block", "isolation_level"),
        *("needs_rollback", "queries_log", "rollback_exc", "run_on_commit", "savepoint_ids"),
        *("run_commit_hooks_on_set_autocommit_on", "savepoint_state", "settings_dict"),
        *("init_commands", "transaction_mode", "_named_cursor_idx"),
        # Ours
        *("_at_work", "_committed_by", "_cursors", "_execute_wrappers", "_force_debug_cursor"),
        *("_given_server_data", "_is_pools_doing", "_needs_rollback", "_queries_log", "_shared"),
        *("_iterations", "_lent", "_statement_timeout", "family", "gives_back", "role", "scope"),
        *(
            "forked",
            "left_by",
            "lends",
            "lost_at_end",
            "seen_by_threads",
            "serves",
            "session",
            "transaction_over",
        ),
    }
)
"""The attributes that are each wrapper's own."""

AT_WORK = (
    *("_close", "_commit", "_cursor", "_rollback", "_savepoint", "_savepoint_commit"),
    *("_savepoint_rollback", "_set_autocommit", "check_constraints", "chunked_cursor"),
    *("clean_savepoints", "close", "close_if_health_check_failed"),
    *("close_if_unusable_or_obsolete", "commit", "connect", "create_cursor", "cursor"),
    *("disable_constraint_checking", "enable_constraint_checking", "ensure_connection"),
    *("get_new_connection", "init_connection_state", "is_usable", "rollback", "savepoint"),
    *("savepoint_commit", "savepoint_rollback", "set_autocommit"),
)
"""Django's methods in which a backend works on its session."""

_GUARDED = cast(Any, async_unsafe(lambda: None)).__code__
"""The code that all functions guarded by Django's `async_unsafe` have."""


def of_caller(method: F) -> F:
    """Decorate a wrapper's method that uses its session: called on a kept wrapper, it goes on
    with the wrapper that serves the caller.
    """  # noqa: D205
    name = method.__name__

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        here = self if self.family is None else self.here()
        if here is self:
            return method(self, *args, **kwargs)
        # The class's method: one that was set on the instance is what called this.
        return getattr(type(here), name)(here, *args, **kwargs)

    return cast(F, call)


def _at_work(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a subclass's override of one of `AT_WORK`: what it sets belongs to this session."""
    guarded = getattr(function, "__code__", None) is _GUARDED
    # Django's guard refuses wherever a loop runs; in a bridge there is nothing to guard.
    inner = cast(Any, function).__wrapped__ if guarded else function

    @of_caller
    @functools.wraps(inner)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if guarded and not may_do_io():
            raise SyncInCoroutine()
        caller = chain_or_thread()
        self._at_work.append(caller)
        try:
            return inner(self, *args, **kwargs)
        finally:
            self._at_work.remove(caller)

    cast(Any, call).__name__ = name
    cast(Any, call)._nuages_at_work = True
    return call


class _Guarded:
    """A replaced method on a facade: bare coroutine code may not call it, like the original."""

    def __init__(self, replaced: Any) -> None:
        self.replaced = replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not may_do_io():
            raise SyncInCoroutine()
        return self.replaced(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.replaced, name)


class _Unwatched:
    """Mixin: a wrapper without `ContextState.__setattr__`, which is a call for each attribute."""

    # Both: to CPython they are one slot, which is its own function only where both are object's.
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


class ContextState(_Base):
    """Mixin: attributes of the context and of the session, told apart."""

    family: Family | None = None
    """The family whose state it shares; None for copies."""
    serves: Chain | None = None
    """The chain that it serves, outside scopes."""
    scope: Scope | None
    role: str
    left_by: Chain | threading.Thread | None = None
    """The chain, or the thread, that is ending one of its blocks."""
    gives_back = False
    """Whether its session is being given back, so that `close()` closes nothing."""
    is_subclassed = False
    """Whether its class is not one of ours: else all of this costs no more than this flag."""
    _at_work: list[object]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a wrapper that is not watched until `__init__` is done."""
        return cast(Self, super().__new__(_with(_Unwatched, cls)))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # All that Django sets here is the wrapper's own.
        try:
            self._at_work = []
            super().__init__(*args, **kwargs)
        finally:
            _, watched = type(self).__bases__
            object.__setattr__(self, "__class__", watched)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith(PREFIX):
            return
        cls.is_subclassed = True
        for name in AT_WORK:
            function = _overridden(cls, name)
            if function is not None and not hasattr(function, "_nuages_at_work"):
                setattr(cls, name, _at_work(name, function))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN or self.family is None or self._is_its_own(name):
            object.__setattr__(self, name, value)
        else:
            if isinstance(value, _Guarded):
                value = value.replaced
            self.family.set(name, value)
            if self.role != "plain" and callable(getattr(type(self), name, None)):
                # The value replaces a method, and code that does so may keep this very wrapper.
                follow(self)

    def __delattr__(self, name: str) -> None:
        if name in OWN or self.family is None or name not in vars(self) or self._is_its_own(name):
            object.__delattr__(self, name)
        else:
            self.family.delete(name)

    def as_member(self, name: str, value: Any) -> Any:
        """Return the value this member is to have: a facade's replaced methods are guarded."""
        if self.role == "facade" and name in AT_WORK and callable(value):
            return _Guarded(value)
        return value

    def _is_its_own(self, name: str) -> bool:
        """Tell whether a property of the class takes `name`, or the class itself is at work."""
        if hasattr(getattr(type(self), name, None), "__set__"):
            return True
        return bool(self._at_work) and chain_or_thread() in self._at_work

    def here(self) -> Any:
        """The wrapper that serves the calling code: mostly this one."""
        if self.gives_back or self.role == "plain":
            return self
        try:
            node = current_node(self.alias)
        except ScopeEnded:
            if self.left_by is not None and self.left_by is chain_or_thread():
                # A block is ending, in a hold that has ended meanwhile.
                return self
            raise
        if node is not None:
            there = connections[self.alias] if node.scope.unended else node.wrapper
        else:
            chain = current_chain()
            if chain is None and asyncio._get_running_loop() is None:
                return self
            if chain is not None and self.serves is chain:
                return self
            there = connections[self.alias]
        if self.scope is not None and getattr(there, "family", None) is not self.family:
            # This wrapper is in another request's transaction: an error, and reported as one.
            return self
        return there

    def forget_session(self) -> None:
        """Let a subclass forget, as in `close()`, what it knows of the session."""
        if self.is_subclassed:
            self.gives_back = True
            try:
                self.close()
            finally:
                self.gives_back = False

    @of_caller
    def cursor(self) -> Any:
        """Do as Django does."""
        return super().cursor()

    @of_caller
    def commit(self) -> None:
        """Do as Django does."""
        super().commit()

    @of_caller
    def rollback(self) -> None:
        """Do as Django does."""
        super().rollback()

    @of_caller
    def savepoint(self) -> Any:
        """Do as Django does."""
        return super().savepoint()

    @of_caller
    def savepoint_commit(self, sid: Any) -> None:
        """Do as Django does."""
        super().savepoint_commit(sid)

    @of_caller
    def savepoint_rollback(self, sid: Any) -> None:
        """Do as Django does."""
        super().savepoint_rollback(sid)

    @of_caller
    def clean_savepoints(self) -> None:
        """Do as Django does."""
        super().clean_savepoints()

    @of_caller
    def get_rollback(self) -> bool:
        """Do as Django does."""
        return super().get_rollback()

    @of_caller
    def set_rollback(self, rollback: bool) -> None:
        """Do as Django does."""
        super().set_rollback(rollback)


def _take_back(wrapper: Any, name: str) -> Any:
    """Return the connection of a thread's wrapper, which is not there while it is lent."""
    if name != "connection" or wrapper._lent is None:
        raise AttributeError(f"{type(wrapper).__name__!r} object has no attribute {name!r}")
    wrapper.take_back_lent()
    return wrapper.connection


def _of_session(name: str) -> property:
    """Return a property that reads `name` from the wrapper that serves the caller."""

    def get(self: Any) -> Any:
        there = self
        if not self.gives_back and self.family is not None:
            chain = current_chain()
            # Outside of chains only our own code asks a lease: one ends, or is dropped.
            asked = chain is not None and (self.scope is not None or self.serves is not chain)
            if asked or self.role == "facade":
                there = self.here()
        if there is not self:
            return getattr(there, name)
        return vars(self)[name] if name in vars(self) else _take_back(self, name)

    def set_own(self: Any, value: Any) -> None:
        vars(self)[name] = value

    def delete(self: Any) -> None:
        del vars(self)[name]

    return property(get, set_own, delete)


class Followed:
    """Mixin: a wrapper that others keep, whose session is the one of the code that looks.

    The debug toolbar keeps one wrapper of a request, to ask for its `connection` after each query.
    """

    connection = _of_session("connection")
    in_atomic_block = _of_session("in_atomic_block")


class Lending:
    """Mixin: a thread's wrapper, whose connection others may have until somebody reads it."""

    @property
    def connection(self) -> Any:
        """The connection; reading it takes it back, or finds it taken."""
        found = vars(self)
        return found["connection"] if "connection" in found else _take_back(self, "connection")

    @connection.setter
    def connection(self, value: Any) -> None:
        vars(self)["connection"] = value

    @connection.deleter
    def connection(self) -> None:
        del vars(self)["connection"]


_made: dict[tuple[type, type], type] = {}


def _with(mixin: type, cls: type) -> type:
    """Return a class that is `cls` with a mixin, by the name of `cls`; made once."""
    found = _made.get((mixin, cls))
    if found is None:
        found = type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})
        found = _made.setdefault((mixin, cls), found)
    return found


def be_lending(wrapper: Any) -> None:
    """Have `wrapper` take its connection back, from now on, when that is read while it is lent."""
    if not isinstance(wrapper, (Lending, Followed)):
        object.__setattr__(wrapper, "__class__", _with(Lending, type(wrapper)))


def follow(wrapper: Any) -> None:
    """Have `wrapper`, from now on, tell of the caller's session instead of its own."""
    if not isinstance(wrapper, Followed):
        object.__setattr__(wrapper, "__class__", _with(Followed, type(wrapper)))


def _overridden(cls: type, name: str) -> Callable[..., Any] | None:
    """Return a class's override, or that of a mixin elsewhere, of our or Django's method."""
    for base in cls.__mro__:
        if base is ContextState or base.__module__.startswith(("nuages.", "django.db.")):
            return None
        if name in vars(base):
            function = vars(base)[name]
            return function if callable(function) else None
    return None
