"""The thinnest path: a query, a transaction and a relation, on each database and loop."""

from __future__ import annotations

import pytest

from nuages.db import aatomic
from tests.integration.conftest import Run
from tests.library.models import Author, Book


def test_a_transaction_commits_or_rolls_back(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            author = await Author.objects.acreate(name="Ursula")
        with pytest.raises(ZeroDivisionError):
            async with aatomic():
                await Author.objects.acreate(name="Nobody")
                raise ZeroDivisionError
        book = await Book.objects.acreate(title="The Dispossessed", author=author)
        found = await Book.objects.aget(pk=book.pk)
        assert (await found.aauthor).name == "Ursula"
        assert [a.name for a in await Author.objects.alist()] == ["Ursula"]

    run(main)
