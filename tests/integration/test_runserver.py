"""`manage.py runserver`, the real command in a real process."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from django.core.management import get_commands
from django.core.management.color import color_style
from django.test import override_settings
from django.utils.log import ServerFormatter

from nuages.management.requestlog import log, logger
from tests.integration.processes import Command, Site, site_in
from tests.services import free_port


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as site:
        site.migrate()
        yield site


def get(url: str, path: str = "/", **options: object) -> httpx.Response:
    return httpx.get(url + path, timeout=30, **options)  # type: ignore[arg-type]


def test_it_serves_as_django_does_and_on_the_loop(site: Site) -> None:
    command = site.start("runserver", "--noreload", "0")
    url = command.url()
    assert "Performing system checks..." in command.output
    assert "System check identified no issues (0 silenced)." in command.output
    assert "Django version 5.2" in command.output or "Django version 6." in command.output
    assert "using settings 'site_settings'" in command.output
    assert "Starting ASGI/Nuages development server at http://127.0.0.1:" in command.output
    command.wait_for(r"Quit the server with CONTROL-C\.")
    command.wait_for("WARNING: This is a development server")
    answer = get(url, "/process/").json()
    assert answer["loop"] == "uvloop"
    assert get(url, "/loop/").json() == {"count": 0, "main": True}
    assert get(url, "/sync/").json()["count"] == 0
    assert get(url, "/text/?a=%20b").text == "twelve chars"
    line = command.wait_for(r'\[(.+)\] "GET /text/\?a=%20b HTTP/1\.1" 200 12\n')
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d", line[1])
    assert get(url, "/nowhere/").status_code == 404
    command.wait_for(r'"GET /nowhere/ HTTP/1\.1" 404 \d+\n')
    assert get(url, "/broken/").status_code == 500
    command.wait_for(r'"GET /broken/ HTTP/1\.1" 500 \d+\n')
    assert httpx.head(url + "/text/", timeout=30).status_code == 200
    command.wait_for(r'"HEAD /text/ HTTP/1\.1" 200 0\n')
    assert command.end(signal.SIGINT) == 0
    assert "Warning" not in command.output


def test_the_application_of_the_settings_is_served(site: Site) -> None:
    site.settings('ASGI_APPLICATION = "site_asgi.application"')
    site.write(
        "site_asgi.py",
        """
        from nuages.asgi import get_asgi_application

        django_application = get_asgi_application()

        class Router:  # as Channels' ProtocolTypeRouter
            application_mapping = {"http": django_application}

            async def __call__(self, scope, receive, send):
                if scope["type"] != "http":
                    raise ValueError("No application configured for this scope type")
                await django_application({**scope, "path": "/pools/"}, receive, send)

        application = Router()
        """,
    )
    command = site.start("runserver", "--noreload", "0")
    # The router has no lifespan; its http application's opened the pool.
    assert get(command.url(), "/nowhere/").json()["default"]["size"] == 1
    assert command.end(signal.SIGINT) == 0
    assert "Traceback" not in command.output


def test_an_application_that_cannot_be_imported(site: Site) -> None:
    site.settings('ASGI_APPLICATION = "site_asgi.application"')
    command = site.start("runserver", "--noreload", "0")
    assert command.end() == 1
    assert "ASGI_APPLICATION = 'site_asgi.application' could not be loaded" in command.output
    assert "No module named 'site_asgi'" in command.output


# Static files


@pytest.fixture
def static(site: Site) -> Site:
    site.write("static/site.css", "body { color: teal }")
    (site.folder / "static" / "large.bin").write_bytes(bytes(range(256)) * 4000)
    site.settings(f"STATICFILES_DIRS = [{str(site.folder / 'static')!r}]")
    return site


def test_static_files(static: Site) -> None:
    command = static.start("runserver", "--noreload", "0")
    url = command.url()
    answer = get(url, "/static/site.css")
    assert answer.text == "body { color: teal }"
    assert answer.headers["content-type"] == "text/css"
    assert answer.headers["content-length"] == "20"
    command.wait_for(r'"GET /static/site\.css HTTP/1\.1" 200 20\n')
    since = {"If-Modified-Since": answer.headers["last-modified"]}
    assert get(url, "/static/site.css", headers=since).status_code == 304
    assert get(url, "/static/large.bin").content == bytes(range(256)) * 4000
    head = httpx.head(url + "/static/large.bin", timeout=30)
    assert (head.headers["content-length"], head.content) == ("1024000", b"")
    assert get(url, "/static/nothing.css").status_code == 404
    assert get(url, "/static/%2e%2e/site_settings.py").status_code == 400
    assert get(url, "/text/").text == "twelve chars"
    assert command.end(signal.SIGINT) == 0
    assert "Warning" not in command.output


def test_static_files_are_for_debug_or_on_demand(static: Site) -> None:
    assert not served(static, "--nostatic")
    static.settings("DEBUG = False")
    assert not served(static)
    assert served(static, "--insecure")


def served(site: Site, *arguments: str) -> bool:
    command = site.start("runserver", "--noreload", "0", *arguments)
    status = get(command.url(), "/static/site.css").status_code
    command.end(signal.SIGINT)
    return status == 200


def test_without_staticfiles_there_are_no_options_for_them(site: Site) -> None:
    site.settings('INSTALLED_APPS.remove("django.contrib.staticfiles")')
    command = site.start("runserver", "--noreload", "--nostatic")
    assert command.end() == 2
    assert "unrecognized arguments: --nostatic" in command.output
    command = site.start("runserver", "--noreload", "0")
    assert get(command.url(), "/text/").status_code == 200
    assert command.end(signal.SIGINT) == 0


# The command line


def test_the_command_line_is_djangos(site: Site) -> None:
    command = site.start(
        "runserver", "localhost:0", "--noreload", "--nothreading", "--skip-checks",
        "--force-color",
    )  # fmt: skip
    command.wait_for(r"\x1b\[.*WARNING: This is a development server")
    assert re.fullmatch(r"http://localhost:\d+", url := command.url())
    assert "system checks" not in command.output
    assert get(url, "/text/").status_code == 200
    assert command.end(signal.SIGINT) == 0


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
@pytest.mark.parametrize("address", [("-6", "0"), ("[::1]:0",)])
def test_ipv6(site: Site, address: tuple[str, ...]) -> None:
    command = site.start("runserver", "--noreload", *address)
    url = command.url()
    assert url.startswith("http://[::1]:")
    assert get(url, "/text/").status_code == 200
    assert command.end(signal.SIGINT) == 0


def test_a_wrong_address(site: Site) -> None:
    command = site.start("runserver", "nonsense:port")
    assert command.end() == 1
    assert '"nonsense:port" is not a valid port number or address:port pair.' in command.output


@pytest.mark.parametrize("reload", [(), ("--noreload",)], ids=["reload", "noreload"])
def test_a_port_in_use(site: Site, reload: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = site.start("runserver", *reload, str(taken.getsockname()[1]))
        assert command.end() == 1
    assert "Error: That port is already in use." in command.output


def test_uvicorn_is_missing(site: Site) -> None:
    with (site.folder / "sitecustomize.py").open("a") as file:
        file.write("import sys; sys.modules['uvicorn'] = None")
    for name in ("runserver", "serve"):
        command = site.start(name)
        assert command.end() == 1
        assert command.output == (
            f"CommandError: `{name}` needs uvicorn, which is not installed: "
            'pip install "nuages[server]"\n'
        )


def test_unapplied_migrations_are_told(site: Site) -> None:
    site.settings("MIGRATION_MODULES = {}")
    command = site.start("runserver", "--noreload", "0")
    command.wait_for(r"You have \d+ unapplied migration\(s\)")
    assert get(command.url(), "/text/").status_code == 200


# The start and the end


def test_a_failing_start_up_ends_the_command(site: Site) -> None:
    site.settings('DATABASES["default"]["OPTIONS"]["pool"] = {"min_sise": 1}')
    command = site.start("runserver", "--noreload", "--skip-checks", "0")
    assert command.end() == 1
    assert "Traceback" in command.output
    assert "min_sise" in command.output


def test_a_failing_start_up_is_tried_again_when_files_change(site: Site) -> None:
    watch(site)
    site.settings('DATABASES["default"]["OPTIONS"]["pool"] = {"min_sise": 1}')
    command = site.start("runserver", "--skip-checks", str(free_port()))
    settings = site.folder / "site_settings.py"
    command.wait_for(rf"File {settings} first seen")
    command.forget(command.wait_for("The application did not start; it is tried again when"))
    assert "min_sise" in command.output
    edit(settings, "min_sise", "min_size")
    assert get(command.url(), "/text/").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("reload", [(), ("--noreload",)], ids=["reload", "noreload"])
def test_a_signal_ends_it_with_streams_open(
    site: Site, number: int, reload: tuple[str, ...]
) -> None:
    """Streams end, requests in flight are cancelled, the lifespan shuts down."""
    shutdown_file(site)
    command = site.start("runserver", *reload, str(free_port()))
    url = command.url()
    with (
        httpx.stream("GET", url + "/events/", timeout=30) as events,
        httpx.stream("GET", url + "/endless/", timeout=30) as endless,
    ):
        lines, others = events.iter_lines(), endless.iter_lines()
        assert next(lines) == "first"
        assert next(others) == "first"
        os.kill(command.process.pid, number)
        assert next(lines) == "last"
        code = command.end()
    # Without the reloader SIGTERM ends the process as it does under Django.
    assert code == (-number if number == signal.SIGTERM and reload else 0), command.output
    assert (site.folder / "shut down").exists()


def test_control_c_in_a_terminal_reaches_both_processes(site: Site) -> None:
    shutdown_file(site)
    command = site.start("runserver", str(free_port()))
    assert get(command.url(), "/text/").status_code == 200
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.end() == 0, command.output
    assert "Traceback" not in command.output
    assert (site.folder / "shut down").exists()


def shutdown_file(site: Site) -> None:
    """Have the application leave a file when its lifespan ends."""
    site.settings('ASGI_APPLICATION = "site_asgi.application"')
    site.write(
        "site_asgi.py",
        f"""
        from pathlib import Path
        from nuages.asgi import get_asgi_application

        django_application = get_asgi_application()

        async def application(scope, receive, send):
            await django_application(scope, receive, send)
            if scope["type"] == "lifespan":
                Path({str(site.folder / "shut down")!r}).touch()
        """,
    )


# Reloading


def watch(site: Site) -> None:
    """Have the reloader say which files it has seen: a change before that is not noticed."""
    site.settings(
        """
        LOGGING = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"plain": {"class": "logging.StreamHandler"}},
            "loggers": {"django.utils.autoreload": {"handlers": ["plain"], "level": "DEBUG"}},
        }
        """
    )


def edit(path: Path, old: str, new: str) -> None:
    """Change the file, and its time by more than a clock tick."""
    before = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, (before.st_atime, before.st_mtime + 2))


def reloading(site: Site) -> tuple[Command, str, Path]:
    """A command that has seen the site's own views, its URL, and their file."""
    watch(site)
    views = site.write(
        "site_urls.py",
        """
        from django.http import HttpResponse
        from django.urls import path

        urlpatterns = [path("", lambda request: HttpResponse("one"))]
        """,
    )
    command = site.start("runserver", str(free_port()))
    url = command.url()
    assert "Watching for file changes with StatReloader" in command.output
    assert get(url).text == "one"
    command.wait_for(rf"File {views} first seen")
    return command, url, views


def test_a_changed_file_is_loaded_anew(site: Site) -> None:
    command, url, views = reloading(site)
    edit(views, '"one"', '"two"')
    command.forget(command.wait_for(rf"{views} changed, reloading"))
    assert command.url() == url
    assert get(url).text == "two"
    assert command.end(signal.SIGTERM) == 0


def test_a_mistake_in_the_code_waits_for_its_correction(site: Site) -> None:
    command, url, views = reloading(site)
    edit(views, '"one"', "one one")
    command.forget(command.wait_for(rf"{views} changed, reloading"))
    command.wait_for("SyntaxError")
    command.wait_for(rf"File {views} first seen")
    edit(views, "one one", '"three"')
    assert command.url() == url
    assert get(url).text == "three"


# The request lines


@pytest.mark.parametrize(
    ("status", "style", "level"),
    [(200, "HTTP_SUCCESS", "INFO"), (404, "HTTP_NOT_FOUND", "WARNING"),
     (500, "HTTP_SERVER_ERROR", "ERROR")],
)  # fmt: skip
def test_a_line_has_djangos_level_and_colour(
    caplog: pytest.LogCaptureFixture, status: int, style: str, level: str
) -> None:
    scope = {"method": "GET", "path": "/é%", "query_string": b"a=1", "http_version": "2"}
    with caplog.at_level("INFO", "django.server"):
        logger.addHandler(caplog.handler)  # it does not propagate
        log(scope, status, 7)
        logger.removeHandler(caplog.handler)
    (record,) = caplog.records
    assert record.levelname == level
    formatter = ServerFormatter("[{server_time}] {message}", style="{")
    formatter.style = color_style(force_color=True)
    line = f'"GET /%C3%A9%25?a=1 HTTP/2" {status} 7'
    expected = getattr(formatter.style, style)(line)
    assert formatter.format(record) == f"[{record.server_time}] {expected}"


# Which runserver


def test_ours_takes_the_place_of_djangos_own_wherever_it_is_listed() -> None:
    static = "django.contrib.staticfiles"
    for apps in (["nuages", static], [static, "nuages"], ["nuages"]):
        with override_settings(INSTALLED_APPS=apps):
            assert get_commands()["runserver"] == "nuages"


def test_another_apps_runserver_that_is_listed_first_keeps_its_place(site: Site) -> None:
    site.write("other/__init__.py", "")
    site.write("other/management/__init__.py", "")
    site.write("other/management/commands/__init__.py", "")
    site.write(
        "other/management/commands/runserver.py",
        """
        from nuages.management.commands.runserver import Command as RunserverCommand

        class Command(RunserverCommand):
            default_port = "0"

            def handle(self, *args, **options):
                self.stdout.write("the project's own")
                super().handle(*args, **options)
        """,
    )
    site.settings('INSTALLED_APPS.insert(0, "other")')
    command = site.start("runserver", "--noreload")
    command.wait_for("the project's own")
    assert get(command.url(), "/text/").status_code == 200
    site.settings("INSTALLED_APPS.append(INSTALLED_APPS.pop(0))")
    command = site.start("runserver", "--noreload", "0")
    assert get(command.url(), "/text/").status_code == 200
    assert "the project's own" not in command.output
