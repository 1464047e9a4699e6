"""Methods that may be coroutine functions where Nuages awaits them, and only there."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.test import TestCase

from nuages.management import AsyncBaseCommand
from nuages.test import AsyncTestCase


class Awaited(AsyncBaseCommand):
    async def handle(self, *args: Any, **options: Any) -> None: ...


class AwaitedToo(Awaited):
    async def handle(self, *args: Any, **options: Any) -> None: ...


class AwaitedTests(AsyncTestCase):
    @classmethod
    async def setUpTestData(cls) -> None: ...


class Plain(BaseCommand):
    def handle(self, *args: Any, **options: Any) -> str | None: ...


class Forgotten(BaseCommand):
    async def handle(self, *args: Any, **options: Any) -> None: ...  # error: mypy override


class ForgottenToo(Plain):
    async def handle(self, *args: Any, **options: Any) -> None: ...  # error: mypy override x2


class Number(BaseCommand):
    def handle(self, *args: Any, **options: Any) -> int:  # error: mypy override
        return 1


class PlainTests(TestCase):
    @classmethod
    def setUpTestData(cls) -> None: ...


class ForgottenTests(PlainTests):
    @classmethod
    async def setUpTestData(cls) -> None: ...  # error: mypy override x2
