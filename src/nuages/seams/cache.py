"""Caches that block go to a thread; local memory, the database and our Redis run on the loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import django
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation

from nuages.bridge import on_loop, run_on_loop
from nuages.bridge.threads import in_thread
from nuages.db.engines import foreign_aliases
from nuages.seams.table import Seam
from nuages.seams.to_thread import family, is_handed_over, is_inherited

_BACKENDS = "django.core.cache.backends"
_BASE = f"{_BACKENDS}.base"
_DATABASE = f"{_BACKENDS}.db"
_IN_MEMORY = frozenset([f"{_BACKENDS}.locmem", f"{_BACKENDS}.dummy"])
_OURS = "nuages.cache.redis"
_BEAR_THREADS = frozenset(
    [
        f"{_BACKENDS}.filebased.FileBasedCache",
        f"{_BACKENDS}.memcached.PyMemcacheCache",  # Django switches its pool on
        f"{_BACKENDS}.redis.RedisCache",
    ]
)
_METHODS = (
    *("add", "get", "set", "touch", "delete", "has_key", "incr", "decr", "clear"),
    *("get_many", "set_many", "delete_many"),
)

_CALLERS = frozenset(["aadd", "aget", "aset", "atouch", "adelete", "aclear"])
# Where the sync method is not BaseCache's own, Django 6.1 calls it, not aget() and aset().
_WHOLE = {
    "aget_many": ("(self, keys, version=None)", ("aget",)),
    "aset_many": ("(self, data, timeout=object(), version=None)", ("aset",)),
    "adelete_many": ("(self, keys, version=None)", ("adelete",)),
    "ahas_key": ("(self, key, version=None)", ("aget",)),
    "aincr": ("(self, key, delta=1, version=None)", ("aget", "aset")),
}
_CALLERS_61 = _CALLERS | {*_WHOLE, "aget_or_set", "aincr_version", "aclose"}


def _native(original: Any) -> Any:
    from django.core.cache.backends.base import BaseCache

    def where_it_belongs(
        function: Callable[..., Any], thread_sensitive: bool = True
    ) -> Callable[..., Any]:
        """Return an async callable for the sync method of a cache.

        Local memory needs no bridge: the only wait there is for a lock that is held for moments,
        and never across an await. What the seam below hands over goes to a thread.
        """
        cache = getattr(function, "__self__", None)
        if not isinstance(cache, BaseCache):
            # Set on the object in place of a method (a mock, a wrapper): as in stock Django.
            return sync_to_async(function)
        method = getattr(function, "__func__", function)
        if method.__module__ in _IN_MEMORY:
            return _directly(function)
        if method.__module__ == _DATABASE and foreign_aliases():
            return sync_to_async(function)
        if is_handed_over(method) or method.__module__ in {_BASE, _DATABASE, _OURS}:
            return on_loop(function)

        async def in_turn(*args: Any, **kwargs: Any) -> Any:
            return await _in_turn(cache, functools.partial(function, *args, **kwargs))

        return in_turn

    return where_it_belongs


def _directly(function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SynchronousOnlyOperation:
            # A queryset as the value asks the database while it is pickled, which comes first.
            return await run_on_loop(function, args, kwargs)

    return call


_in_use: ContextVar[tuple[Any, ...]] = ContextVar("nuages.caches_in_use", default=())
"""The caches that have a method in the calls that led to the running code."""


async def _in_turn(cache: Any, function: Callable[[], Any]) -> Any:
    """Call a method of `cache` in a thread, when no other thread is in a method of it.

    Django gives each thread a cache object of its own, so one need not bear several threads; but
    the tasks of a request share one.
    """
    if _bears_threads(cache) or any(one is cache for one in _in_use.get()):
        return await in_thread(function)
    async with _turns(cache):
        token = _in_use.set((*_in_use.get(), cache))
        try:
            return await in_thread(function)
        finally:
            _in_use.reset(token)


def _turns(cache: Any) -> asyncio.Lock:
    locks: Any = vars(cache).setdefault("_nuages_turns", WeakKeyDictionary())
    lock: asyncio.Lock = locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    return lock


def _bears_threads(cache: Any) -> bool:
    """Tell whether `cache` bears several threads: its class, or one it only adds to, does."""
    for cls in type(cache).__mro__:
        if f"{cls.__module__}.{cls.__qualname__}" in _BEAR_THREADS:
            return True
        if any(not is_inherited(vars(cls).get(name)) for name in _METHODS if name in vars(cls)):
            return False
    return False


def _whole(name: str, parts: tuple[str, ...]) -> Callable[[Any], Any]:
    """Do as Django 6.1: one call of a sync method that the cache has, not one for each key."""

    def make(original: Any) -> Any:
        @functools.wraps(original)
        async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            from django.core.cache.backends.base import BaseCache

            cls, sync = type(self), name[1:]
            if getattr(cls, sync) is getattr(BaseCache, sync) or any(
                getattr(cls, part) is not getattr(BaseCache, part) for part in parts
            ):
                return await original(self, *args, **kwargs)
            return await native(getattr(self, sync))(*args, **kwargs)

        native = _native(None)
        return method

    return make


def _make_middleware_decorator(original: Any) -> Any:
    @functools.wraps(original)
    def make_middleware_decorator(middleware_class: Any) -> Any:
        make_decorator = original(middleware_class)

        def make_decorator_on_loop(*args: Any, **kwargs: Any) -> Any:
            decorate = make_decorator(*args, **kwargs)

            def decorator(view: Any) -> Any:
                decorated = decorate(view)
                return on_loop(decorated) if iscoroutinefunction(decorated) else decorated

            return decorator

        return make_decorator_on_loop

    return make_middleware_decorator


def seams() -> list[Seam]:
    """Return this area's seams."""
    newer = django.VERSION[:2] >= (6, 1)
    table: list[Seam] = [
        family(
            f"{_BASE}:BaseCache",
            _METHODS,
            "Files, memcached, Django's Redis and the caches of users block. close() is not among "
            "them: it runs at the end of every request, to put a connection away at most.",
            (*_IN_MEMORY, _DATABASE, _OURS),
            run_in=_in_turn,
        ),
        Seam(
            f"{_BASE}:sync_to_async",
            "The a* methods call their sync twins in the one thread that all share: local memory "
            "and the database need none, the others each have their own, in the caller's "
            "transaction.",
            _native,
            callers=_CALLERS_61 if newer else _CALLERS,
        ),
        Seam(
            "django.utils.decorators:make_middleware_decorator",
            "cache_page() and the like call sync middleware in an async view's coroutine, which "
            "would block there (the database cache raises): it becomes a portal.",
            _make_middleware_decorator,
            callers=frozenset(
                ["decorator_from_middleware", "decorator_from_middleware_with_args"]
            ),
        ),
    ]
    if not newer:
        table += [
            Seam(
                f"{_BASE}:BaseCache.{name}",
                "It asks for one key after another, where the sync method has one command for "
                "all, and incr() is atomic. As Django 6.1.",
                _whole(name, parts),
                signature,
            )
            for name, (signature, parts) in _WHOLE.items()
        ]
    return table
