"""`aatomic` and `detached` with two databases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, connections

from nuages.db import aatomic, detached
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    Failure,
    names,
    rolled_back,
)
from tests.library.models import Author


@pytest.fixture
def second_alias(postgresql: dict[str, Any]) -> Iterator[str]:
    """The same PostgreSQL database by another alias, so with other connections."""
    connections.settings["second"] = {**postgresql}
    yield "second"
    connections["second"].close()
    del connections["second"]
    del connections.settings["second"]


def test_using_names_the_database(second_alias: str, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(Failure):
            async with aatomic(using=second_alias):
                await Author.objects.using(second_alias).acreate(name="in it")
                await Author.objects.acreate(name="of another database")
                assert connections[second_alias].in_atomic_block
                assert not connection.in_atomic_block
                raise Failure
        assert await names() == ["of another database"]

        @aatomic(second_alias)
        async def decorated() -> None:
            await Author.objects.using(second_alias).acreate(name="decorated")
            raise Failure

        with pytest.raises(Failure):
            await decorated()
        async with aatomic(), aatomic(using=second_alias):
            await asyncio.gather(
                Author.objects.acreate(name="one"),
                Author.objects.using(second_alias).acreate(name="two"),
            )
        assert await names() == ["of another database", "one", "two"]

    run(main)


def test_detached_using_leaves_the_other_databases_alone(second_alias: str, run: Run) -> None:
    async def main() -> None:
        async with rolled_back(), aatomic(using=second_alias):
            async with detached(using=second_alias):
                await Author.objects.acreate(name="in the transaction")
                await Author.objects.using(second_alias).acreate(name="detached")
                assert connection.in_atomic_block
                assert not connections[second_alias].in_atomic_block
            assert connections[second_alias].in_atomic_block
        assert await names() == ["detached"]

    run(main)
