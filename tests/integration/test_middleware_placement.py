"""Middleware: where each kind runs, in every order, and what it may do there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import (
    BadRequest,
    ImproperlyConfigured,
    MiddlewareNotUsed,
    PermissionDenied,
    SuspiciousOperation,
)
from django.core.signals import got_request_exception
from django.http import Http404, HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path
from django.utils import translation
from django.utils.decorators import (
    async_only_middleware,
    sync_and_async_middleware,
    sync_only_middleware,
)
from django.utils.deprecation import MiddlewareMixin

from nuages import on_loop
from nuages.asgi.handler import ASGIHandler
from tests.integration.asgi_client import fetch, where
from tests.integration.conftest import Counts, Run
from tests.integration.scope_tools import receiving

seen: list[tuple[str, str]] = []
"""What ran, in order, and where."""

ERRORS: dict[str, type[Exception]] = {
    "404": Http404,
    "403": PermissionDenied,
    "400": SuspiciousOperation,
    "bad": BadRequest,
    "500": ValueError,
}


def note(name: str) -> None:
    seen.append((name, where()))


def before(name: str, request: HttpRequest) -> None:
    note(f"{name} in")
    if request.headers.get("Fail") == f"{name} in":
        raise ERRORS[request.headers["Error"]]("of the test")


def after(name: str, request: HttpRequest, response: Any) -> Any:
    note(f"{name} out")
    if request.headers.get("Fail") == f"{name} out":
        raise ERRORS[request.headers["Error"]]("of the test")
    response[name] = str(response.status_code)
    return response


# One middleware of each kind


def sync_function(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        before("sync_function", request)
        return after("sync_function", request, get_response(request))

    return middleware


@sync_only_middleware
def sync_only_function(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        before("sync_only_function", request)
        return after("sync_only_function", request, get_response(request))

    return middleware


class SyncClass:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        before("SyncClass", request)
        return after("SyncClass", request, self.get_response(request))


@on_loop
def loop_function(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        before("loop_function", request)
        return after("loop_function", request, get_response(request))

    return middleware


@on_loop
class LoopClass:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        before("LoopClass", request)
        return after("LoopClass", request, self.get_response(request))


class Mixin(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        before("Mixin", request)

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        return after("Mixin", request, response)


@on_loop
class LoopMixin(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        before("LoopMixin", request)

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        return after("LoopMixin", request, response)


class CallingMixin(MiddlewareMixin):
    """With a `__call__` of its own, as many have."""

    def __call__(self, request: HttpRequest) -> Any:
        before("CallingMixin", request)
        return after("CallingMixin", request, self.get_response(request))


CallingMixin.async_capable = False


class AsyncFlags:
    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> Any:
        before("AsyncFlags", request)
        return after("AsyncFlags", request, await self.get_response(request))


class AsyncNoFlags:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> Any:
        before("AsyncNoFlags", request)
        return after("AsyncNoFlags", request, await self.get_response(request))


class AsyncMixin(MiddlewareMixin):
    async def __call__(self, request: HttpRequest) -> Any:
        before("AsyncMixin", request)
        return after("AsyncMixin", request, await self.get_response(request))


class AsyncMixinFlags(AsyncMixin):
    async_capable = True
    sync_capable = False

    async def __call__(self, request: HttpRequest) -> Any:
        before("AsyncMixinFlags", request)
        return after("AsyncMixinFlags", request, await self.get_response(request))


class AsyncDocumented:
    """The pattern of Django's documentation."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(self.get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> Any:
        before("AsyncDocumented", request)
        return after("AsyncDocumented", request, await self.get_response(request))


class BothClass:
    """Sync or async by what it gets, as Django's own MiddlewareMixin is."""

    async_capable = True
    sync_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self.get_response):
            return self.__acall__(request)
        before("BothClass", request)
        return after("BothClass", request, self.get_response(request))

    async def __acall__(self, request: HttpRequest) -> Any:
        before("BothClass", request)
        return after("BothClass", request, await self.get_response(request))


@sync_and_async_middleware
def both_function(get_response: Any) -> Any:
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> Any:
            before("both_function", request)
            return after("both_function", request, await get_response(request))

    else:

        def middleware(request: HttpRequest) -> Any:
            before("both_function", request)
            return after("both_function", request, get_response(request))

    return middleware


@async_only_middleware
def async_function(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        before("async_function", request)
        return after("async_function", request, await get_response(request))

    return middleware


PLACES = {
    "sync_function": "thread",
    "sync_only_function": "thread",
    "SyncClass": "thread",
    "Mixin": "thread",
    "CallingMixin": "thread",
    "loop_function": "loop",
    "LoopClass": "loop",
    "LoopMixin": "loop",
    "AsyncFlags": "loop",
    "AsyncNoFlags": "loop",
    "AsyncMixin": "loop",
    "AsyncMixinFlags": "loop",
    "AsyncDocumented": "loop",
    "BothClass": "loop",
    "both_function": "loop",
    "async_function": "loop",
}
THREADED = [name for name, place in PLACES.items() if place == "thread"]


# Views


def failing(request: HttpRequest) -> None:
    if request.headers.get("Fail") == "view":
        raise ERRORS[request.headers["Error"]]("of the test")


async def async_view(request: HttpRequest) -> HttpResponse:
    note("view")
    failing(request)
    return HttpResponse("async")


def sync_view(request: HttpRequest) -> HttpResponse:
    note("view")
    failing(request)
    return HttpResponse("sync")


@on_loop
def loop_view(request: HttpRequest) -> HttpResponse:
    note("view")
    failing(request)
    return HttpResponse("loop")


VIEWS = {"async": "loop", "sync": "thread", "loop": "loop"}


def template_view(request: HttpRequest) -> TemplateResponse:
    note("view")
    return TemplateResponse(request, engines["django"].from_string("{{ word }}"), {"word": "of"})


urlpatterns = [
    path("async/", async_view),
    path("sync/", sync_view),
    path("loop/", loop_view),
    path("template/", template_view),
]


def used(*middleware: str) -> Any:
    """Settings with this middleware; a name without a dot is one of this module."""
    return override_settings(
        MIDDLEWARE=[name if "." in name else f"{__name__}.{name}" for name in middleware]
    )


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    seen.clear()
    with override_settings(
        ROOT_URLCONF=__name__,
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    ):
        yield
    seen.clear()


# Placement


@pytest.mark.parametrize("view", VIEWS)
def test_every_kind_above_and_below_every_other(run: Run, view: str) -> None:
    """Stock Django dies of some: "'coroutine' object has no attribute 'get'"."""

    async def main() -> None:
        for above in PLACES:
            for below in PLACES:
                seen.clear()
                with used(above, below):
                    answer = await fetch(ASGIHandler(), f"/{view}/")
                assert answer.status == 200, (above, below, answer.content)
                assert answer.content.decode() == view
                assert answer.headers[above.lower()] == "200"
                assert seen == [
                    (f"{above} in", PLACES[above]),
                    (f"{below} in", PLACES[below]),
                    ("view", VIEWS[view]),
                    (f"{below} out", PLACES[below]),
                    (f"{above} out", PLACES[above]),
                ]

    run(main)


@pytest.mark.parametrize("how", ["mode", "listed"])
def test_all_of_it_on_the_loop(run: Run, how: str) -> None:
    names = list(PLACES)
    nuages = (
        {"SYNC_VIEWS": "loop"}
        if how == "mode"
        else {"LOOP_MIDDLEWARE": [f"{__name__}.{name}" for name in names]}
    )

    async def main() -> None:
        answer = await fetch(ASGIHandler(), "/sync/")
        assert answer.status == 200
        expected = "loop" if how == "mode" else "thread"
        assert [place for name, place in seen if name == "view"] == [expected]
        assert {place for name, place in seen if name != "view"} == {"loop"}
        assert [name for name, _ in seen] == [
            *(f"{name} in" for name in names),
            "view",
            *(f"{name} out" for name in reversed(names)),
        ]

    with override_settings(NUAGES=nuages), used(*names):
        run(main)


@pytest.mark.parametrize(
    ("middleware", "submissions"),
    [
        (["sync_function"], 1),
        (["sync_function", "SyncClass", "sync_only_function"], 1),
        # The lower one goes to the thread of the upper one, which waits and so is no submission.
        (["sync_function", "AsyncFlags", "SyncClass"], 1),
        # A mixin's hooks go there one by one, and nothing waits in the thread.
        (["Mixin"], 2),
        (["LoopClass", "AsyncMixin", "both_function"], 0),
    ],
)
def test_ways_to_the_thread(
    run: Run, middleware: list[str], submissions: int, threads: Counts
) -> None:
    """Adjacent sync middlewares share one."""

    async def main() -> None:
        handler = ASGIHandler()
        await fetch(handler, "/async/")
        threads.clear()
        seen.clear()
        assert (await fetch(handler, "/async/")).status == 200
        pools = [s for s in threads.submitted if s.startswith("ThreadPoolExecutor.submit")]
        assert len(pools) == submissions

    with used(*middleware):
        run(main)


def _locale_class() -> Any:
    from django.middleware.locale import LocaleMiddleware

    class OwnLocale(LocaleMiddleware):
        """A hook of its own; the other one is Django's."""

        def process_request(self, request: HttpRequest) -> None:
            note("own hook")
            super().process_request(request)

        def process_view(self, *args: Any) -> None:
            note("own process_view")

    return OwnLocale


OwnLocale = _locale_class()


def test_a_subclass_of_django_middleware_hops_for_its_own_hooks_only(run: Run) -> None:
    async def main() -> None:
        with receiving(got_request_exception, lambda **kwargs: None):
            answer = await fetch(ASGIHandler(), "/lang/", headers={"Accept-Language": "de"})
        assert answer.content.decode() == "de"  # activated in the thread, seen on the loop
        assert answer.headers["content-language"] == "de"
        assert seen == [("own hook", "thread"), ("own process_view", "thread"), ("view", "loop")]

    async def language(request: HttpRequest) -> HttpResponse:
        note("view")
        return HttpResponse(translation.get_language())

    module = sys.modules[__name__]
    with override_settings(USE_I18N=True, LANGUAGES=[("en", "English"), ("de", "Deutsch")]):
        module.urlpatterns.append(path("lang/", language))
        try:
            with used("OwnLocale"):
                run(main)
        finally:
            module.urlpatterns.pop()


SEVEN = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


def test_a_sync_middleware_between_djangos_own(run: Run) -> None:
    async def main() -> None:
        answer = await fetch(ASGIHandler(), "/sync/")
        assert answer.status == 200
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["syncclass"] == "200"
        assert answer.headers["asyncflags"] == "200"

    engine = "django.contrib.sessions.backends.signed_cookies"
    with (
        used(*SEVEN[:3], "SyncClass", *SEVEN[3:5], "AsyncFlags", *SEVEN[5:]),
        override_settings(SESSION_ENGINE=engine),
    ):
        run(main)


# Errors


STATUS = {"404": 404, "403": 403, "400": 400, "bad": 400, "500": 500}


@pytest.mark.parametrize("place", ["in", "out"])
@pytest.mark.parametrize("error", STATUS)
def test_an_exception_becomes_a_response_where_it_is_raised(
    run: Run, place: str, error: str
) -> None:
    async def main() -> None:
        for below in PLACES:
            for above in ("SyncClass", "AsyncFlags", "LoopClass"):
                if above == below:
                    continue
                with used(above, below):
                    answer = await fetch(
                        ASGIHandler(),
                        "/async/",
                        headers={"Fail": f"{below} {place}", "Error": error},
                    )
                # The one above sees a response, whatever happened below.
                assert answer.status == STATUS[error], (above, below)
                assert answer.headers[above.lower()] == str(STATUS[error])

    run(main)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("error", STATUS)
def test_an_exception_of_the_view(run: Run, view: str, error: str) -> None:
    async def main() -> None:
        for name in PLACES:
            with used(name):
                answer = await fetch(
                    ASGIHandler(), f"/{view}/", headers={"Fail": "view", "Error": error}
                )
            assert answer.status == STATUS[error]
            assert answer.headers[name.lower()] == str(STATUS[error])

    run(main)


# Hooks


class Hooks:
    """`process_*` hooks; `answers` says which of them gives a response."""

    answers = ""
    handled: list[Any] = []

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> Any:
        note("process_view")
        return HttpResponse("of process_view") if self.answers == "view" else None

    def process_exception(self, request: HttpRequest, error: Exception) -> Any:
        note("process_exception")
        self.handled.append((error, sys.exc_info()[1]))
        return HttpResponse("of process_exception") if self.answers == "exception" else None

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        note("process_template_response")
        response.context_data["word"] = "changed"
        return response


class AsyncHooks:
    async_capable = True
    sync_capable = False
    answers = ""
    handled: list[Any] = Hooks.handled

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> Any:
        return await self.get_response(request)

    async def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> Any:
        return Hooks.process_view(self, request, view, args, kwargs)  # type: ignore[arg-type]

    async def process_exception(self, request: HttpRequest, error: Exception) -> Any:
        return Hooks.process_exception(self, request, error)  # type: ignore[arg-type]

    async def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        return Hooks.process_template_response(self, request, response)  # type: ignore[arg-type]


class SyncHooksOfAsync(AsyncHooks):
    """Async, with sync hooks."""

    process_view = Hooks.process_view  # type: ignore[assignment]
    process_exception = Hooks.process_exception  # type: ignore[assignment]
    process_template_response = Hooks.process_template_response  # type: ignore[assignment]


class AsyncHooksOfSync(Hooks):
    process_view = AsyncHooks.process_view  # type: ignore[assignment]
    process_exception = AsyncHooks.process_exception  # type: ignore[assignment]
    process_template_response = AsyncHooks.process_template_response  # type: ignore[assignment]


class MixinHooks(MiddlewareMixin):
    answers = ""
    handled: list[Any] = Hooks.handled
    process_view = Hooks.process_view
    process_exception = Hooks.process_exception
    process_template_response = Hooks.process_template_response


LoopHooks = on_loop(type("LoopHooks", (Hooks,), {}))

HOOKS = {
    "Hooks": "thread",
    "MixinHooks": "thread",
    "AsyncHooks": "loop",
    "SyncHooksOfAsync": "thread",
    "AsyncHooksOfSync": "loop",
    "LoopHooks": "loop",
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_answers(value: str) -> None:
        for owner in (Hooks, AsyncHooks, MixinHooks):
            monkeypatch.setattr(owner, "answers", value)

    Hooks.handled.clear()
    yield set_answers
    Hooks.handled.clear()


@pytest.mark.parametrize("hooks", HOOKS)
def test_process_view(run: Run, hooks: str, answers: Any) -> None:
    async def main() -> None:
        for view in VIEWS:
            seen.clear()
            answers("")
            assert (await fetch(ASGIHandler(), f"/{view}/")).content.decode() == view
            assert seen == [("process_view", HOOKS[hooks]), ("view", VIEWS[view])]
            answers("view")
            assert (await fetch(ASGIHandler(), f"/{view}/")).content == b"of process_view"

    with used(hooks):
        run(main)


@pytest.mark.parametrize("hooks", HOOKS)
def test_process_exception(run: Run, hooks: str, answers: Any) -> None:
    headers = {"Fail": "view", "Error": "500"}

    async def main() -> None:
        for view in VIEWS:
            seen.clear()
            Hooks.handled.clear()
            answers("")
            assert (await fetch(ASGIHandler(), f"/{view}/", headers=headers)).status == 500
            assert seen[1:] == [("view", VIEWS[view]), ("process_exception", HOOKS[hooks])]
            # The error is being handled there, as loggers and error trackers expect.
            ((given, handled),) = Hooks.handled
            assert isinstance(given, ValueError)
            assert handled is given
            answers("exception")
            answer = await fetch(ASGIHandler(), f"/{view}/", headers=headers)
            assert (answer.status, answer.content) == (200, b"of process_exception")

    with used(hooks):
        run(main)


@pytest.mark.parametrize("hooks", HOOKS)
def test_process_template_response(run: Run, hooks: str, answers: Any) -> None:
    async def main() -> None:
        assert (await fetch(ASGIHandler(), "/template/")).content == b"changed"
        assert seen[1:] == [("view", "thread"), ("process_template_response", HOOKS[hooks])]

    with used(hooks):
        run(main)


def function_with_hook(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    def process_view(request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        note("hook of a function")

    middleware.process_view = process_view  # type: ignore[attr-defined]
    return middleware


def test_a_hook_that_is_a_plain_function(run: Run) -> None:
    async def main() -> None:
        assert (await fetch(ASGIHandler(), "/async/")).status == 200
        assert seen == [("hook of a function", "thread"), ("view", "loop")]

    with used("function_with_hook"):
        run(main)


class TemplateNothing(Hooks):
    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        return None


def test_a_hook_that_returns_no_response(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        assert (await fetch(ASGIHandler(), "/template/")).status == 500
        assert "TemplateNothing.process_template_response didn't return an" in caplog.text

    with used("TemplateNothing"):
        run(main)


# Loading


class Unused(SyncClass):
    def __init__(self, get_response: Any) -> None:
        raise MiddlewareNotUsed("not today")


class UnusedSilently(SyncClass):
    def __init__(self, get_response: Any) -> None:
        raise MiddlewareNotUsed


def nothing(get_response: Any) -> None:
    return None


class Neither(SyncClass):
    sync_capable = False
    async_capable = False


def test_a_middleware_that_is_not_used(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        assert (await fetch(ASGIHandler(), "/async/")).headers["syncclass"] == "200"

    with (
        used("Unused", "UnusedSilently", "SyncClass"),
        override_settings(DEBUG=True),
        caplog.at_level(logging.DEBUG, "django.request"),
    ):
        run(main)
    assert f"MiddlewareNotUsed('{__name__}.Unused'): not today" in caplog.messages
    assert f"MiddlewareNotUsed: '{__name__}.UnusedSilently'" in caplog.messages


@pytest.mark.parametrize("nuages", [{}, {"SYNC_VIEWS": "loop"}])
def test_wrong_middleware(nuages: dict[str, Any]) -> None:
    with override_settings(NUAGES=nuages):
        with used("nothing"), pytest.raises(ImproperlyConfigured, match="returned None"):
            ASGIHandler()
        with used("Neither"), pytest.raises(RuntimeError, match="sync_capable/async_capable"):
            ASGIHandler()


def test_the_debug_log_tells_the_truth(caplog: pytest.LogCaptureFixture) -> None:
    def adapted(*middleware: str) -> list[str]:
        caplog.clear()
        with used(*middleware):
            ASGIHandler()
        return [message.replace(f"{__name__}.", "") for message in caplog.messages]

    with override_settings(DEBUG=True), caplog.at_level(logging.DEBUG, "django.request"):
        assert adapted(*SEVEN) == []
        assert adapted("AsyncFlags", "LoopClass", "AsyncMixin", "both_function") == []
        sync = "Asynchronous handler adapted for middleware SyncClass."
        assert adapted("SyncClass") == [sync]
        assert adapted("sync_function", "SyncClass") == [sync]  # one way to the thread for both
        assert adapted("AsyncFlags", "SyncClass") == [
            sync,
            "Synchronous handler adapted for middleware AsyncFlags.",
        ]
        assert adapted("LoopClass", "SyncClass") == [
            sync,
            "Synchronous handler adapted for middleware LoopClass.",
        ]


# The project's error views and receivers


def of_the_project(request: HttpRequest, exception: Any = None) -> HttpResponse:
    note("error view")
    return HttpResponse("ours", status=404 if exception else 500)


def bad_request(request: HttpRequest, exception: Any) -> HttpResponse:
    note("error view")
    return HttpResponse("ours", status=400)


@pytest.fixture
def error_views() -> Iterator[None]:
    module: Any = sys.modules[__name__]
    module.handler404 = module.handler500 = module.handler403 = of_the_project
    module.handler400 = bad_request
    try:
        with override_settings(ROOT_URLCONF=__name__):  # forgets the cached resolvers
            yield
    finally:
        for status in (400, 403, 404, 500):
            delattr(module, f"handler{status}")


@pytest.mark.parametrize("mode", ["thread", "loop"])
@pytest.mark.parametrize("error", STATUS)
def test_the_projects_error_views(run: Run, mode: str, error: str, error_views: None) -> None:
    async def main() -> None:
        answer = await fetch(ASGIHandler(), "/async/", headers={"Fail": "view", "Error": error})
        assert answer.content == b"ours"
        assert seen == [("view", "loop"), ("error view", mode)]
        seen.clear()
        assert (await fetch(ASGIHandler(), "/nowhere/")).content == b"ours"
        assert seen == [("error view", mode)]

    with override_settings(NUAGES={"SYNC_VIEWS": mode}):
        run(main)


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", ["sync", "loop", "async"])
@pytest.mark.parametrize("view", VIEWS)
def test_receivers_of_got_request_exception_see_the_error(
    run: Run, kind: str, debug: bool, view: str
) -> None:
    """Error trackers look at `sys.exc_info()` there; so does the debug page."""
    caught: list[Any] = []

    def receiver(**kwargs: Any) -> None:
        caught.append((where(), sys.exc_info()[1]))

    async def async_receiver(**kwargs: Any) -> None:
        receiver(**kwargs)

    given = {"sync": receiver, "loop": on_loop(receiver), "async": async_receiver}[kind]

    async def main() -> None:
        with receiving(got_request_exception, given):
            answer = await fetch(
                ASGIHandler(), f"/{view}/", headers={"Fail": "view", "Error": "500"}
            )
        assert answer.status == 500
        ((place, error),) = caught
        assert place == ("thread" if kind == "sync" else "loop")
        if kind == "sync":
            assert isinstance(error, ValueError)
        if debug:
            assert b"ValueError" in answer.content
            assert b"failing" in answer.content  # a frame of the view

    with override_settings(DEBUG=debug):
        run(main)
