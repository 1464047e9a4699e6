"""Session and user of a request, loaded before an `async def` view, so that it may read them.

`request.session["cart"]` and `request.user.pk` load on first use, which in a coroutine cannot
await. `preload()` does the loading beforehand, in a bridge. This must change nothing else about
the request, the answer's `Vary` and cookies least of all, so nothing is done to the session:

* A copy of the session is loaded. The session itself gets the outcome (data, a key that turned
  out to be void) when it would have loaded by itself. Only then is it marked accessed. An engine
  that writes while it loads (file sessions that have expired) is left to do so itself, later.
* The user is handed out only as long as the session says the same of the user as before; after a
  login or a logout in the view Django itself looks.
* A session that its user's password change made void is flushed when the user is looked at, and a
  session that an old secret key signed gets a new key (`django.contrib.auth.get_user`). In a
  coroutine the storage's part of that waits until SessionMiddleware has the response.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import auth
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare
from django.utils.functional import SimpleLazyObject, empty

from nuages.bridge import current_bridge
from nuages.conf import setting

_USER = "_nuages_user"
_LATER = "_nuages_later"
_KEYS = (auth.SESSION_KEY, auth.BACKEND_SESSION_KEY, auth.HASH_SESSION_KEY)


@dataclass(frozen=True, slots=True)
class _User:
    """The user that a session names, and what is to become of the session."""

    session: SessionBase
    says: tuple[Any, ...]
    """What the session says of the user: its values of `_KEYS`."""
    user: Any
    void: bool = False
    """Whether the session's hash is wrong: flush the session."""
    new_hash: str | None = None
    """The right hash, if the session's is an old secret key's; the session gets a new key, too."""


def preload(request: HttpRequest) -> None:
    """Load the session and the user of `request`; called in a bridge, before an async view.

    Does nothing where the request brings no session cookie, there is no session,
    `NUAGES["PRELOAD_SESSION"]` is off, or both are loaded already. A failing database raises
    here what it would raise in the view.
    """
    if not setting["PRELOAD_SESSION"] or settings.SESSION_COOKIE_NAME not in request.COOKIES:
        return
    session = getattr(request, "session", None)
    if not isinstance(session, SessionBase) or session.session_key is None:
        return
    state = vars(session)
    if "load" in state:
        return
    data = state.get("_session_cache")
    if data is None:
        data = _load_copy(session)
    if data is not None and _is_lazy(request):
        vars(request)[_USER] = _find_user(session, data)


def _load_copy(session: SessionBase) -> Any:
    """Load a copy of `session`, for the first use of `session` to find; return the data.

    Returns None, with nothing prepared, where loading wants to write.
    """
    loaded: Any = copy.copy(session)
    wrote: list[str] = []
    for name in ("create", "save", "delete"):
        setattr(loaded, name, lambda *args, _name=name, **kwargs: wrote.append(_name))
    data = loaded._get_session()
    if wrote:
        return None
    mine: Any = session
    key = session.session_key

    def take() -> bool:
        for name in ("load", "aload"):
            vars(mine).pop(name, None)  # a thread of the view may have come first
        if mine.session_key != key:
            return False
        mine._session_key = loaded.session_key
        mine.modified = mine.modified or loaded.modified
        return True

    def load() -> Any:
        return data if take() else mine.load()

    async def aload() -> Any:
        return data if take() else await mine.aload()

    vars(session).update(load=load, aload=aload)
    return data


def _is_lazy(request: HttpRequest) -> bool:
    """Tell whether request.user is AuthenticationMiddleware's and has not been looked at yet."""
    lazy: Any = vars(request).get("user")
    if type(lazy) is not SimpleLazyObject:
        return False
    state = lazy.__dict__
    return (
        state["_wrapped"] is empty
        and state["_setupfunc"].__module__ == "django.contrib.auth.middleware"
    )


def _says(data: Any) -> tuple[Any, ...]:
    return tuple(data.get(key) for key in _KEYS)


def _find_user(session: SessionBase, data: Any) -> _User | None:
    """Return the user that the session names: `django.contrib.auth.get_user`, without its writes.

    Returns None where that would raise an error.
    """
    from django.contrib.auth.models import AnonymousUser

    says = stored, backend, session_hash = _says(data)
    if stored is None or backend not in settings.AUTHENTICATION_BACKENDS:
        return _User(session, says, AnonymousUser())
    try:
        pk = auth.get_user_model()._meta.pk.to_python(stored)
    except ValidationError:
        return None
    user: Any = auth.load_backend(backend).get_user(pk)
    if hasattr(user, "get_session_auth_hash"):
        right = user.get_session_auth_hash()
        if not session_hash:
            return _User(session, says, None, void=True)
        if not constant_time_compare(session_hash, right):
            old = user.get_session_auth_fallback_hash()
            if any(constant_time_compare(session_hash, one) for one in old):
                return _User(session, says, user, new_hash=right)
            return _User(session, says, None, void=True)
    return _User(session, says, user or AnonymousUser())


def loaded_user(request: HttpRequest) -> Any:
    """Return the preloaded user, which marks the session accessed; None where Django must look.

    For sync code, which a coroutine may call.
    """
    found: _User | None = vars(request).get(_USER)
    if found is None or found.session is not request.session:
        return None
    session: Any = found.session
    if _says(session._get_session()) != found.says:
        return None
    if not found.void and found.new_hash is None:
        return found.user
    if asyncio._get_running_loop() is None or current_bridge() is not None:
        return None
    return _settle_later(request, found)


async def aloaded_user(request: HttpRequest) -> Any:
    """Return the preloaded user as `loaded_user` does, where nothing is to be written."""
    found: _User | None = vars(request).get(_USER)
    if found is None or found.session is not request.session:
        return None
    session: Any = found.session
    if _says(await session._aget_session()) != found.says:
        return None
    return None if found.void or found.new_hash is not None else found.user


def _settle_later(request: HttpRequest, found: _User) -> Any:
    """Do to the session what `get_user` does, with the storage's part left to `do_deferred`."""
    from django.contrib.auth.models import AnonymousUser

    session: Any = found.session
    later: list[Callable[[], object]] = vars(request).setdefault(_LATER, [])
    if found.void:
        later.append(copy.copy(session).delete)
        session.clear()
        session._session_key = None
        return AnonymousUser()
    key = session.session_key

    def cycle() -> None:
        if session.session_key == key:
            session.cycle_key()

    later.append(cycle)
    session[auth.HASH_SESSION_KEY] = found.new_hash
    return found.user


def do_deferred(request: HttpRequest) -> None:
    """Do what had to wait, where I/O is allowed, before SessionMiddleware looks at the session."""
    for action in vars(request).pop(_LATER, ()):
        action()
