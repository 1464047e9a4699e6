"""`manage.py serve`: the project in production, a thin layer on uvicorn."""

from __future__ import annotations

import argparse
import os
import socket
import ssl
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from nuages.management import listening, need_uvicorn

GRACEFUL_SHUTDOWN = 20
"""Seconds; container platforms kill after 30 (Kubernetes) or 10 (Docker's default)."""


class Command(BaseCommand):
    """Serves the ASGI application with uvicorn.

    Exit codes: 0 after SIGTERM or SIGINT, 1 for wrong options, 3 where the application does not
    start.
    """

    help = (
        "Serves the project in production: its ASGI application (ASGI_APPLICATION, else Nuages' "
        "own) on uvicorn. Static files are not served: leave them to the web server in front, "
        "to a CDN or to WhiteNoise. For development use runserver."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Name the options as uvicorn does."""
        where = parser.add_argument_group("where to listen")
        where.add_argument("--host", help="Address to listen on (default: 127.0.0.1).")
        where.add_argument(
            "--port", type=_from(0), help="Port; 0 takes a free one and prints it (default: 8000)."
        )
        where.add_argument(
            "--uds", metavar="PATH", help="Listen on a Unix socket, created here, instead."
        )
        where.add_argument(
            "--fd",
            type=_from(0),
            metavar="N",
            help="Listen on this socket of the parent process instead (socket activation).",
        )
        where.add_argument(
            "--backlog",
            type=_from(1),
            default=2048,
            metavar="N",
            help="Connections that may wait to be accepted (default: %(default)s).",
        )
        where.add_argument("--ssl-certfile", metavar="PATH", help="Serve TLS: the certificate.")
        where.add_argument("--ssl-keyfile", metavar="PATH", help="The certificate's key.")

        load = parser.add_argument_group("processes and limits")
        load.add_argument(
            "--workers",
            type=_from(1),
            default=1,
            metavar="N",
            help="Processes, each with an event loop and connection pools of its own; one for "
            "each core is a good start. A worker that dies is replaced (default: %(default)s).",
        )
        load.add_argument(
            "--limit-concurrency",
            type=_from(1),
            metavar="N",
            help="With so many connections or requests, the new one counted, a worker answers "
            "503 before the application sees the request (default: no limit).",
        )
        load.add_argument(
            "--limit-max-requests",
            type=_from(1),
            metavar="N",
            help="A worker ends after so many requests and is replaced, against leaks; with "
            "one worker the command ends (default: no limit).",
        )

        time = parser.add_argument_group("seconds")
        time.add_argument(
            "--timeout-keep-alive",
            type=_from(0),
            default=5,
            metavar="S",
            help="How long an idle connection is kept (default: %(default)s). Set it above the "
            "proxy's, else requests meet closed connections.",
        )
        time.add_argument(
            "--timeout-graceful-shutdown",
            type=_from(0),
            default=GRACEFUL_SHUTDOWN,
            metavar="S",
            help="How long requests in flight may go on after SIGTERM; then they are cancelled. "
            "Event streams end at once (default: %(default)s).",
        )

        proxy = parser.add_argument_group("behind a proxy")
        proxy.add_argument(
            "--proxy-headers",
            action="store_true",
            help="Take the client's address and scheme from X-Forwarded-For and "
            "X-Forwarded-Proto, as the proxies of --forwarded-allow-ips say.",
        )
        proxy.add_argument(
            "--forwarded-allow-ips",
            metavar="LIST",
            help="Addresses and networks of trusted proxies, separated by commas; '*' trusts "
            "everybody, and is needed with --uds (default: 127.0.0.1,::1).",
        )
        proxy.add_argument(
            "--root-path",
            default="",
            metavar="PATH",
            help="The path that the proxy serves the project under and strips, as in /shop.",
        )

        log = parser.add_argument_group("logging")
        log.add_argument(
            "--log-level",
            choices=("critical", "error", "warning", "info", "debug", "trace"),
            help="Of the server's own log (default: info, or what LOGGING says of 'uvicorn').",
        )
        log.add_argument(
            "--access-log",
            action="store_true",
            help="Write a line for each request; a proxy in front usually does.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Check the options, listen and serve."""
        need_uvicorn("serve")
        self.refuse(options)
        if settings.DEBUG:
            self.stderr.write(
                self.style.WARNING(
                    "WARNING: DEBUG = True. Visitors see code and settings on error pages, and "
                    "every query is kept in memory. Set DEBUG = False in production."
                )
            )
        # What the checks opened; worker processes and the event loop have their own.
        for connection in connections.all(initialized_only=True):
            connection.close()
        listener, place = self.listen(options)
        uds = options["uds"]
        made = listening.identity(uds) if uds else ()
        from nuages.management import application, production

        count = options["workers"]
        self.stdout.write(
            f"Serving {application.application_name()} on {place}"
            + (f" with {count} workers" if count > 1 else "")
        )
        self.stdout.flush()
        colors = False if options["no_color"] else True if options["force_color"] else None
        try:
            production.run(
                listener,
                workers=count,
                backlog=options["backlog"],
                limit_concurrency=options["limit_concurrency"],
                limit_max_requests=options["limit_max_requests"],
                timeout_keep_alive=options["timeout_keep_alive"],
                timeout_graceful_shutdown=options["timeout_graceful_shutdown"],
                proxy_headers=options["proxy_headers"],
                forwarded_allow_ips=options["forwarded_allow_ips"] or "127.0.0.1,::1",
                root_path=options["root_path"],
                log_config=production.log_config(colors),
                log_level=options["log_level"],
                access_log=options["access_log"],
                ssl_certfile=options["ssl_certfile"],
                ssl_keyfile=options["ssl_keyfile"],
            )
        finally:
            listener.close()
            if uds:
                listening.remove_unix(uds, made)

    def refuse(self, options: dict[str, Any]) -> None:
        """Raise CommandError for options that cannot be meant."""
        if not settings.DEBUG and not settings.ALLOWED_HOSTS:
            raise CommandError("You must set settings.ALLOWED_HOSTS if DEBUG is False.")
        address = options["host"] is not None or options["port"] is not None
        if sum([address, options["uds"] is not None, options["fd"] is not None]) > 1:
            raise CommandError("Give --host and --port, or --uds, or --fd: it listens once.")
        if options["forwarded_allow_ips"] and not options["proxy_headers"]:
            raise CommandError("--forwarded-allow-ips has no effect without --proxy-headers.")
        if options["workers"] > 1 and not os.environ.get("DJANGO_SETTINGS_MODULE"):
            raise CommandError(
                "--workers above 1 starts processes that find the settings by "
                "DJANGO_SETTINGS_MODULE, which is not set."
            )
        if options["ssl_keyfile"] and not options["ssl_certfile"]:
            raise CommandError("--ssl-keyfile needs --ssl-certfile.")
        if options["ssl_certfile"]:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                    options["ssl_certfile"], options["ssl_keyfile"]
                )
            except OSError as error:
                raise CommandError(
                    f"The certificate or its key cannot be read: {error}. Name the certificate "
                    "by --ssl-certfile, and its key by --ssl-keyfile unless that file has both."
                ) from error

    def listen(self, options: dict[str, Any]) -> tuple[socket.socket, str]:
        """Return the socket that `options` ask for, and its name for people."""
        backlog: int = options["backlog"]
        try:
            if options["uds"]:
                return listening.listen_unix(options["uds"], backlog=backlog), options["uds"]
            if options["fd"] is not None:
                listener = listening.listen_inherited(options["fd"])
                return listener, f"socket {listener.getsockname()}"
            host = options["host"] or "127.0.0.1"
            port = 8000 if options["port"] is None else options["port"]
            ipv6 = ":" in host
            listener = listening.listen_tcp(host, port, ipv6=ipv6, backlog=backlog)
        except OSError as error:
            where = (
                options["uds"] if options["uds"]
                else f"--fd {options['fd']}" if options["fd"] is not None
                else f"{options['host'] or '127.0.0.1'}:{port}"
            )  # fmt: skip
            what = "socket" if options["uds"] else "port"
            raise CommandError(f"{where}: {listening.explain(error, what)}") from error
        scheme = "https" if options["ssl_certfile"] else "http"
        name = f"[{host}]" if ipv6 else host
        return listener, f"{scheme}://{name}:{listener.getsockname()[1]}/"


def _from(lowest: int) -> Any:
    """Return an argparse type: a whole number, `lowest` or more."""

    def number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be {lowest} or more, not {value}")
        return value

    number.__name__ = "int"
    return number
