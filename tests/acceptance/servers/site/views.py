"""The site's ordinary views: every kind that Django has, and echoes of what the server said."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading

from django.contrib.auth.views import LoginView
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import ListView

from nuages import on_loop
from nuages.db.pool.pool import open_pools
from nuages.http import afile_response
from tests.acceptance.servers.site import counting
from tests.acceptance.servers.site.models import Item
from tests.acceptance.servers.site.on_purpose import OnPurpose


def _thread() -> str:
    return "main" if threading.current_thread() is threading.main_thread() else "other"


async def hello(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"hello": "world", "thread": _thread()})


async def one_item(request: HttpRequest, pk: int) -> JsonResponse:
    item = await Item.objects.aget(pk=pk)
    return JsonResponse({"name": item.name, "thread": _thread()})


@on_loop
def loop_items(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"items": [item.name for item in Item.objects.all()], "thread": _thread()})


def sync_items(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"items": [item.name for item in Item.objects.all()], "thread": _thread()})


class ItemList(ListView):
    model = Item
    template_name = "items.html"
    context_object_name = "items"


item_list = on_loop(ItemList.as_view())
login = on_loop(LoginView.as_view(template_name="login.html"))


async def session(request: HttpRequest) -> JsonResponse:
    visits = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", visits)
    user = await request.auser()
    return JsonResponse({"visits": visits, "user": user.get_username()})


@csrf_exempt
async def form(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"fields": dict(request.POST.lists())})


@csrf_exempt
async def upload(request: HttpRequest) -> JsonResponse:
    files = {
        name: {
            "name": file.name,
            "size": file.size,
            "sha256": hashlib.sha256(file.read()).hexdigest(),
        }
        for name, file in request.FILES.items()
    }
    return JsonResponse({"files": files, "fields": dict(request.POST.lists())})


@csrf_exempt
async def body(request: HttpRequest) -> JsonResponse:
    received = request.body
    return JsonResponse(
        {"size": len(received), "sha256": hashlib.sha256(received).hexdigest()},
        headers={"X-Method": request.method or ""},
    )


async def unread(request: HttpRequest) -> HttpResponse:
    """Answers without a look at the body."""
    return HttpResponse("not read")


unread.csrf_exempt = True  # type: ignore[attr-defined]


async def echo_path(request: HttpRequest, rest: str) -> JsonResponse:
    return JsonResponse(
        {
            "path": request.path,
            "rest": rest,
            "query": request.META["QUERY_STRING"],
            "full": request.get_full_path(),
            "absolute": request.build_absolute_uri(),
            "host": request.get_host(),
        }
    )


async def headers(request: HttpRequest) -> HttpResponse:
    """Answer with two cookies, and the request's own headers in the body."""
    response = JsonResponse({"headers": dict(request.headers), "cookies": request.COOKIES})
    response.set_cookie("first", "1")
    response.set_cookie("second", "2", httponly=True)
    response.headers["X-Swing"] = "jazz manouche"
    return response


async def redirect(request: HttpRequest) -> HttpResponseRedirect:
    return HttpResponseRedirect("/hello/")


async def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


async def broken(request: HttpRequest) -> HttpResponse:
    raise OnPurpose


async def nothing(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=204)


async def file(request: HttpRequest) -> HttpResponseBase:
    """The file that SITE_FILE names; X-Pathsend tells whether the server offers to send it."""
    response = await afile_response(request, os.environ["SITE_FILE"])
    offered = request.scope.get("extensions") or {}  # type: ignore[attr-defined]
    response.headers["X-Pathsend"] = str("http.response.pathsend" in offered)
    return response


async def state(request: HttpRequest) -> JsonResponse:
    """Tell what the lifespan left for the requests."""
    return JsonResponse({key: str(value) for key, value in request.state.items()})  # type: ignore[attr-defined]


async def info(request: HttpRequest) -> JsonResponse:
    """Tell about the process: executor submissions, threads, the loop, the pools."""
    return JsonResponse(
        {
            "pid": os.getpid(),
            "submitted": counting.submitted,
            "started": counting.started,
            "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
            "pools": {pool.alias: pool.stats() for pool in open_pools()},
            "tasks": len(asyncio.all_tasks()),
        }
    )
