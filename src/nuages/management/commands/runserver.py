"""`manage.py runserver`: Django's command line, served by ASGI."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import CommandParser
from django.core.management.commands.runserver import Command as DjangoCommand

from nuages.management import need_uvicorn, reloading

_DEPLOYMENT = "https://docs.djangoproject.com/en/stable/howto/deployment/"


class Command(DjangoCommand):
    """Django's `runserver` on uvicorn, and staticfiles' where that is installed.

    Checks, migrations, messages and the command line are Django's. Only `server_cls` and what it
    serves are ours, and the way it ends.
    """

    addr: str
    _raw_ipv6: bool
    help = (
        "Starts a development server: the ASGI application on uvicorn, loaded anew when code "
        "changes. Serves static files where django.contrib.staticfiles is installed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Django's arguments; --nothreading is accepted, and means nothing on an event loop."""
        super().add_arguments(parser)
        if apps.is_installed("django.contrib.staticfiles"):
            parser.add_argument(
                "--nostatic",
                action="store_false",
                dest="use_static_handler",
                help="Tells Django to NOT automatically serve static files at STATIC_URL.",
            )
            parser.add_argument(
                "--insecure",
                action="store_true",
                dest="insecure_serving",
                help="Allows serving static files even if DEBUG is False.",
            )

    def handle(self, *args: Any, **options: Any) -> None:
        """Parse the address and run; raises CommandError for what cannot be."""
        need_uvicorn("runserver")
        super().handle(*args, **options)

    def get_handler(self, *args: Any, **options: Any) -> Any:
        """Return the ASGI application, with static files and request lines around it."""
        from nuages.management.application import load_application
        from nuages.management.requestlog import RequestLog

        application = load_application()
        if options.get("use_static_handler") and (
            settings.DEBUG or options.get("insecure_serving")
        ):
            from nuages.management.staticfiles import StaticFiles

            application = StaticFiles(application)
        return RequestLog(application)

    def run(self, **options: Any) -> None:
        """Run the server, with the autoreloader unless --noreload says otherwise."""
        self.server: Any = None
        if options["use_reloader"]:
            reloading.run_with_reloader(self.inner_run, self.stop, **options)
        else:
            self.inner_run(None, **options)

    def inner_run(self, *args: Any, **options: Any) -> None:
        """Check, listen and serve."""
        # Django makes the server of this; a function can remember which one it made.
        self.server_cls = self.make_server  # type: ignore[assignment]
        options["use_threading"] = False  # it would mix Django's threads into the class
        try:
            super().inner_run(*args, **options)
        except SystemExit as end:
            if end.code and options["use_reloader"]:
                self.stderr.write(
                    "The application did not start; it is tried again when a file changes."
                )
            raise

    def make_server(self, *args: Any, **kwargs: Any) -> Any:
        """Return the server, listening."""
        from nuages.management.development import DevelopmentServer

        self.server = DevelopmentServer(*args, **kwargs)
        return self.server

    def stop(self) -> None:
        """Stop the server that runs in another thread, if it has come so far."""
        try:
            if self.server is not None and not self.server.stop(reloading.STOP_TIMEOUT):
                self.stderr.write(
                    f"The server did not stop within {reloading.STOP_TIMEOUT:g} s: a request or "
                    "the project's own clean-up is still running. Ended without it."
                )
        except KeyboardInterrupt:
            self.stderr.write("Ended without waiting.")

    def on_bind(self, server_port: int) -> None:
        """Say where the server is."""
        quit_command = "CTRL-BREAK" if sys.platform == "win32" else "CONTROL-C"
        host = f"[{self.addr}]" if self._raw_ipv6 else self.addr
        host = "0.0.0.0" if host == "0" else host  # noqa: S104 - only shown
        now = datetime.now().strftime("%B %d, %Y - %X")
        self.stdout.write(
            f"{now}\n"
            f"Django version {self.get_version()}, using settings {settings.SETTINGS_MODULE!r}\n"
            f"Starting ASGI/Nuages development server at {self.protocol}://{host}:{server_port}/\n"
            f"Quit the server with {quit_command}."
        )
        if os.environ.get("DJANGO_RUNSERVER_HIDE_WARNING") != "true":
            self.stdout.write(
                self.style.WARNING(
                    "WARNING: This is a development server. Do not use it in a production "
                    "setting. Use `manage.py serve` or another production server instead.\n"
                    f"For more information on production servers see: {_DEPLOYMENT}"
                )
            )
        self.stdout.flush()
