"""The subjects: what is measured, how each is started, and how they differ."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from benchmarks.works import Work

THREADS = 16
"""Threads of gunicorn's one worker; docs/benchmarks.md says why this many."""


@dataclass(frozen=True)
class Subject:
    name: str
    title: str
    variables: dict[str, str] = field(default_factory=dict, hash=False)
    """What benchmarks.site.settings reads."""
    application: str = "benchmarks.site.asgi:application"
    lifespan: str = "off"
    """Of the ASGI subjects; stock Django has no lifespan."""
    prefix: str = ""
    """Before a work's path."""
    gunicorn: bool = False

    def path(self, work: Work) -> str:
        return self.prefix + work.path

    def command(self, descriptor: int) -> list[str]:
        """What serves this subject on the listening socket of that descriptor."""
        if not self.gunicorn:
            module = [sys.executable, "-m", "benchmarks.serve"]
            return [*module, self.application, str(descriptor), self.lifespan]
        return [
            *(sys.executable, "-m", "gunicorn", self.application),
            *("--bind", f"fd://{descriptor}", "--workers", "1"),
            *("--worker-class", "gthread", "--threads", str(THREADS)),
            *("--keep-alive", "60", "--log-level", "warning", "--no-control-socket"),
        ]


def _django(stack: str, middleware: str = "default", **more: str) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "benchmarks.site.settings",
        "BENCH_STACK": stack,
        "BENCH_MIDDLEWARE": middleware,
        **more,
    }


SUBJECTS = (
    Subject("stock", "stock Django ASGI, 7 middlewares", _django("stock")),
    Subject("stock-pool", "the same, psycopg pool", _django("stock-pool")),
    Subject("stock-bare", "the same, pool, no middleware", _django("stock-pool", "none")),
    Subject(
        "nuages-bare",
        "Nuages, no middleware",
        _django("nuages", "none"),
        lifespan="on",
    ),
    Subject("nuages", "Nuages, 7 middlewares", _django("nuages"), lifespan="on"),
    Subject(
        "fastapi",
        "FastAPI, SQLAlchemy, asyncpg",
        application="benchmarks.fastapi_app:application",
        lifespan="on",
    ),
    Subject(
        "gunicorn",
        f"stock Django, sync, {THREADS} threads, pool, 7 mw",
        _django("stock-pool"),
        application="benchmarks.site.wsgi:application",
        prefix="/sync",
        gunicorn=True,
    ),
    Subject(
        "nuages-loop",
        "Nuages, sync views on the loop, 7 mw",
        _django("nuages", BENCH_SYNC_VIEWS="loop"),
        lifespan="on",
        prefix="/sync",
    ),
)


@dataclass(frozen=True)
class Target:
    """What a ratio is to reach."""

    work: str
    subject: str
    other: str
    at_least: float


TARGETS = (
    Target("hello", "nuages", "stock", 8),
    Target("row", "nuages", "stock", 7),
    Target("row", "nuages", "stock-pool", 4.5),
    Target("row", "nuages-bare", "fastapi", 1.3),
    Target("gathered", "nuages", "stock", 2),
    Target("hello", "nuages-loop", "gunicorn", 1.3),
    Target("row", "nuages-loop", "gunicorn", 1.3),
    Target("gathered", "nuages-loop", "gunicorn", 1.3),
)
