"""`manage.py serve`, the real command in a real process."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.processes import Site, site_in


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as site:
        site.settings("DEBUG = False")
        site.migrate()
        yield site


def get(url: str, path: str, **options: object) -> httpx.Response:
    return httpx.get(url + path, timeout=30, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_ends_in_order(site: Site, number: int) -> None:
    command = site.start("serve", "--port", "0")
    url = command.url()
    assert "Serving nuages.asgi.get_asgi_application() on http://127.0.0.1:" in command.output
    assert get(url, "/process/").json()["loop"] == "uvloop"
    assert get(url, "/pools/").json()["default"]["size"] == 1
    command.wait_for("Application startup complete")
    with httpx.stream("GET", url + "/events/", timeout=30) as events:
        lines = events.iter_lines()
        assert next(lines) == "first"
        command.process.send_signal(number)
        assert next(lines) == "last"
    assert command.end() == 0, command.output
    assert "Application shutdown complete" in command.output
    assert "Traceback" not in command.output
    assert "GET" not in command.output  # no access log, unless asked for


def test_a_stream_that_never_ends_is_cancelled(site: Site) -> None:
    command = site.start("serve", "--port", "0", "--timeout-graceful-shutdown", "0")
    with httpx.stream("GET", command.url() + "/endless/", timeout=30) as endless:
        lines = endless.iter_lines()  # letting go of it would close the stream
        assert next(lines) == "first"
        assert command.end(signal.SIGTERM) == 0, command.output
    assert "Cancel 1 running task(s)" in command.output


def test_workers_share_the_port(site: Site) -> None:
    site.settings(
        # The default of Django's own setting, which would silence uvicorn in the workers.
        'LOGGING = {"version": 1, "disable_existing_loggers": True}'
    )
    command = site.start("serve", "--workers", "2", "--port", "0")
    url = command.url()
    assert "with 2 workers" in command.output
    command.wait_for(r"(?s)(Application startup complete.*){2}")
    pids = set()
    while len(pids) < 2:  # who takes a connection is up to the kernel
        answer = get(url, "/process/").json()
        assert answer["settings"] == "site_settings"
        pids.add(answer["pid"])
    assert command.process.pid not in pids
    with httpx.stream("GET", url + "/events/", timeout=30) as events:
        lines = events.iter_lines()
        assert next(lines) == "first"
        command.process.send_signal(signal.SIGTERM)
        assert next(lines) == "last"
    assert command.end() == 0, command.output
    assert command.output.count("Application shutdown complete") == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_dies_is_replaced(site: Site) -> None:
    command = site.start("serve", "--workers", "2", "--port", "0")
    url = command.url()
    command.forget(command.wait_for(r"(?s)(Application startup complete.*){2}"))
    os.kill(get(url, "/process/").json()["pid"], signal.SIGKILL)
    command.wait_for("Application startup complete")
    assert get(url, "/text/").status_code == 200
    assert command.end(signal.SIGTERM) == 0, command.output


def test_the_settings_given_on_the_command_line_reach_the_workers(site: Site) -> None:
    (site.folder / "elsewhere").mkdir()
    (site.folder / "site_settings.py").rename(site.folder / "elsewhere" / "other_settings.py")
    del site.environment["DJANGO_SETTINGS_MODULE"]
    command = site.start(
        "serve", "--settings", "other_settings", "--pythonpath",
        str(site.folder / "elsewhere"), "--workers", "2", "--port", "0",
    )  # fmt: skip
    assert get(command.url(), "/process/").json()["settings"] == "other_settings"
    assert command.end(signal.SIGTERM) == 0, command.output


# What it listens on


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_unix_socket(site: Site, workers: str) -> None:
    path = site.folder / "site.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # what a killed server leaves behind
    command = site.start("serve", "--uds", str(path), "--workers", workers)
    command.wait_for(f"Serving .* on {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=30) as http:
        assert http.get("http://site.test/text/").text == "twelve chars"
    second = site.start("serve", "--uds", str(path))
    assert second.end() == 1
    assert "That socket is already in use." in second.output
    assert command.end(signal.SIGTERM) == 0, command.output
    assert not path.exists()


def test_a_unix_socket_of_a_successor_is_left_alone(site: Site) -> None:
    path = site.folder / "site.sock"
    command = site.start("serve", "--uds", str(path))
    command.wait_for(f"Serving .* on {path}")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=30) as http:
        assert http.get("http://site.test/text/").text == "twelve chars"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        assert command.end(signal.SIGTERM) == 0, command.output
        assert path.is_socket()


def test_a_file_is_not_taken_for_a_socket(site: Site) -> None:
    path = site.write("precious.txt", "precious")
    command = site.start("serve", "--uds", str(path))
    assert command.end() == 1
    assert path.read_text() == "precious"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_inherited_socket(site: Site, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        command = site.start("serve", "--fd", str(number), "--workers", workers, pass_fds=[number])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert get(url, "/text/").text == "twelve chars"
    assert command.end(signal.SIGTERM) == 0, command.output


def test_a_descriptor_that_is_no_socket(site: Site) -> None:
    command = site.start("serve", "--fd", "999")
    assert command.end() == 1
    assert "--fd 999: [Errno 9] Bad file descriptor" in command.output


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_ipv6(site: Site) -> None:
    command = site.start("serve", "--host", "::1", "--port", "0")
    url = command.url()
    assert url.startswith("http://[::1]:")
    assert get(url, "/text/").status_code == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use(site: Site, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = site.start("serve", "--port", port, "--workers", workers)
        assert command.end() == 1
    assert f"CommandError: 127.0.0.1:{port}: That port is already in use." in command.output


def test_tls(site: Site) -> None:
    certificate, key = site.folder / "site.crt", site.folder / "site.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    command = site.start(
        "serve", "--host", "localhost", "--port", "0",
        "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key),
    )  # fmt: skip
    url = command.url()
    assert url.startswith("https://localhost:")
    trusting = ssl.create_default_context(cafile=str(certificate))
    assert get(url, "/process/", verify=trusting).json()["scheme"] == "https"
    assert command.end(signal.SIGTERM) == 0, command.output
    command = site.start("serve", "--ssl-certfile", str(key))
    assert command.end() == 1
    assert "The certificate or its key cannot be read" in command.output


# Limits, proxies, logs


def test_limits(site: Site) -> None:
    command = site.start("serve", "--port", "0", "--limit-concurrency", "2")
    url = command.url()
    with httpx.stream("GET", url + "/events/", timeout=30) as events:
        lines = events.iter_lines()
        assert next(lines) == "first"
        assert get(url, "/text/").status_code == 503
    command = site.start("serve", "--port", "0", "--limit-max-requests", "1")
    assert get(command.url(), "/text/").status_code == 200
    assert command.end() == 0, command.output
    assert "Maximum request limit of 1 exceeded" in command.output


@pytest.mark.parametrize(
    ("options", "client", "scheme"),
    [
        ((), "127.0.0.1", "http"),
        (("--proxy-headers",), "10.9.8.7", "https"),
        (("--proxy-headers", "--forwarded-allow-ips", "10.0.0.1"), "127.0.0.1", "http"),
    ],
    ids=["not asked for", "from the loopback", "from another"],
)
def test_proxy_headers(site: Site, options: tuple[str, ...], client: str, scheme: str) -> None:
    # Neither of uvicorn's variables has a say.
    site.environment |= {"FORWARDED_ALLOW_IPS": "*", "WEB_CONCURRENCY": "3"}
    command = site.start("serve", "--port", "0", *options)
    headers = {"X-Forwarded-For": "10.9.8.7", "X-Forwarded-Proto": "https"}
    answer = get(command.url(), "/process/", headers=headers).json()
    assert (answer["client"], answer["scheme"]) == (client, scheme)
    assert answer["pid"] == command.process.pid
    assert command.end(signal.SIGTERM) == 0


def test_a_root_path(site: Site) -> None:
    command = site.start("serve", "--port", "0", "--root-path", "/shop")
    assert get(command.url(), "/process/").json()["path"] == "/shop/process/"
    assert command.end(signal.SIGTERM) == 0


def test_the_log(site: Site) -> None:
    command = site.start("serve", "--port", "0", "--access-log", "--log-level", "warning")
    assert get(command.url(), "/text/").status_code == 200
    assert command.end(signal.SIGTERM) == 0
    assert "GET" not in command.output  # its level is info
    command = site.start("serve", "--port", "0", "--access-log")
    assert get(command.url(), "/text/").status_code == 200
    command.wait_for('"GET /text/ HTTP/1.1" 200 OK')
    assert command.end(signal.SIGTERM) == 0


def test_a_log_configured_in_the_settings_is_left_alone(site: Site) -> None:
    site.settings(
        """
        LOGGING = {
            "version": 1,
            "formatters": {"own": {"format": "own: {message}", "style": "{"}},
            "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
            "loggers": {"uvicorn": {"handlers": ["own"], "level": "INFO"}},
        }
        """
    )
    command = site.start("serve", "--port", "0")
    command.wait_for(r"own: Application startup complete\.")
    assert command.end(signal.SIGTERM) == 0


# What it refuses


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_failing_start_up_ends_the_command(site: Site, workers: str) -> None:
    site.settings('DATABASES["default"]["OPTIONS"]["pool"] = {"min_sise": 1}')
    command = site.start("serve", "--port", "0", "--skip-checks", "--workers", workers)
    assert command.end() == 3, command.output
    assert "Traceback" in command.output
    assert "min_sise" in command.output
    assert "Application startup failed" in command.output


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_application_that_cannot_be_imported(site: Site, workers: str) -> None:
    site.settings('ASGI_APPLICATION = "site_asgi.application"')
    site.write("site_asgi.py", "1 / 0")
    command = site.start("serve", "--port", "0", "--workers", workers)
    assert command.end() == 1
    assert 'site_asgi.py", line 1' in command.output
    assert "ZeroDivisionError" in command.output


def test_debug_is_warned_of(site: Site) -> None:
    site.settings("DEBUG = True")
    command = site.start("serve", "--port", "0")
    assert get(command.url(), "/text/").status_code == 200
    assert "WARNING: DEBUG = True." in command.output
    assert get(command.url(), "/static/").status_code == 404
    assert command.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--port", "1", "--uds", "x"), 1, "Give --host and --port, or --uds, or --fd"),
        (("--forwarded-allow-ips", "*"), 1, "has no effect without --proxy-headers"),
        (("--ssl-keyfile", "x"), 1, "--ssl-keyfile needs --ssl-certfile"),
        (("--workers", "0"), 2, "argument --workers: must be 1 or more, not 0"),
        (("--workers", "many"), 2, "argument --workers: invalid int value: 'many'"),
    ],
)
def test_options_that_cannot_be_meant(
    site: Site, options: tuple[str, ...], code: int, message: str
) -> None:
    command = site.start("serve", *options)
    assert command.end() == code
    assert message in command.output


def test_allowed_hosts_are_needed(site: Site) -> None:
    site.settings("ALLOWED_HOSTS = []")
    command = site.start("serve")
    assert command.end() == 1
    assert "You must set settings.ALLOWED_HOSTS if DEBUG is False." in command.output


def test_the_help_says_what_it_does_not_do(site: Site) -> None:
    command = site.start("serve", "--help")
    assert command.end() == 0
    assert "Static files are not served" in " ".join(command.output.split())
