"""A site whose views look at session and user, each as a sync and as an async view."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from django.contrib import auth
from django.http import HttpRequest, JsonResponse
from django.urls import path


def nothing(request: Any) -> Any:
    return None


def read(request: Any) -> Any:
    return request.session.get("cart")


def contains(request: Any) -> Any:
    return "cart" in request.session


def write(request: Any) -> Any:
    request.session["cart"] = 9


def remove(request: Any) -> Any:
    return request.session.pop("cart", None)


def change_inside(request: Any) -> Any:
    request.session.setdefault("list", []).append(1)


def only_the_key(request: Any) -> Any:
    return request.session.session_key is None


def empty(request: Any) -> Any:
    return request.session.is_empty()


def expiry(request: Any) -> Any:
    request.session.set_expiry(300)
    return request.session.get_expiry_age()


def user(request: Any) -> Any:
    return request.user.pk


def user_twice(request: Any) -> Any:
    return [request.user.username, request.user.is_authenticated, request.session.accessed]


def user_and_session(request: Any) -> Any:
    return [read(request), user(request), sorted(request.session.keys())]


def session_after_user(request: Any) -> Any:
    name = request.user.username
    request.session["seen"] = name
    return name


def user_after_a_change(request: Any) -> Any:
    del_user = request.session.pop(auth.SESSION_KEY, None)
    return [del_user, request.user.pk]


def accessed(request: Any) -> Any:
    return [request.session.accessed, request.session.modified]


def failing(request: Any) -> Any:
    request.session["cart"] = request.user.pk
    raise ZeroDivisionError


SYNC: dict[str, Callable[[Any], Any]] = {
    function.__name__: function
    for function in (
        *(nothing, read, contains, write, remove, change_inside, only_the_key, empty, expiry),
        *(user, user_twice, user_and_session, session_after_user, user_after_a_change),
        *(accessed, failing),
    )
}


async def auser(request: Any) -> Any:
    found = await request.auser()
    return [found.pk, (await request.auser()) is found]


async def flush(request: Any) -> Any:
    await request.session.aflush()
    return (await request.auser()).pk


async def cycle(request: Any) -> Any:
    await request.session.acycle_key()
    return (await request.auser()).pk


async def login(request: Any) -> Any:
    other = await auth.get_user_model().objects.aget(username="other")
    await auth.alogin(request, other, "django.contrib.auth.backends.ModelBackend")
    return [request.user.username, (await request.auser()).username]


async def logout(request: Any) -> Any:
    await auth.alogout(request)
    return [request.user.is_anonymous, await request.session.aget("cart")]


async def save(request: Any) -> Any:
    await request.session.aset("cart", 5)
    await request.session.asave()


async def reload(request: Any) -> Any:
    return sorted(await request.session.aload())


ASYNC: dict[str, Callable[[Any], Awaitable[Any]]] = {
    function.__name__: function for function in (auser, flush, cycle, login, logout, save, reload)
}


def _sync_view(body: Callable[[Any], Any]) -> Any:
    def view(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"saw": body(request)})

    return view


def _async_view(body: Callable[[Any], Any]) -> Any:
    async def view(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"saw": body(request)})

    return view


def _awaiting_view(body: Callable[[Any], Awaitable[Any]]) -> Any:
    async def view(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"saw": await body(request)})

    return view


async def both(request: Any) -> JsonResponse:
    """request.user and request.auser() give one object."""
    name = request.user.username
    found = await request.auser()
    return JsonResponse({"saw": [name, found is request.user._wrapped]})


urlpatterns = [
    *(path(f"sync/{name}/", _sync_view(body)) for name, body in SYNC.items()),
    *(path(f"async/{name}/", _async_view(body)) for name, body in SYNC.items()),
    *(path(f"async/{name}/", _awaiting_view(body)) for name, body in ASYNC.items()),
    path("async/both/", both),
]
