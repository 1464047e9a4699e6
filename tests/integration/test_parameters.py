"""Values are values: whatever they hold, no database reads them as SQL, nor does a placeholder."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DataError

from nuages.db import acursor
from tests.integration.conftest import Run
from tests.integration.pool_tools import fetch, options
from tests.integration.scope_tools import statements
from tests.library.models import Author

VALUES = [
    "'",
    "''",
    "\\",
    "\\'",
    "\\\\'",
    "'; DROP TABLE library_author; --",
    "\\'; DROP TABLE library_author; -- ",
    "' OR 'a' = 'a",
    '" OR "a" = "a',
    "%s",
    "%(name)s",
    "%%",
    "%",
    "$1",
    "$$; SELECT 1; $$",
    ":name",
    "?",
    "{}",
    "{0.__class__}",
    "`",
    "a\nb\rc\td",
    "-- comment",
    "/* comment",
    "/*! SELECT 1 */",
    "E'\\''",
    "縗' OR 1=1 -- ",  # in GBK its second byte is a backslash
    "表' OR 1=1 -- ",  # in Shift-JIS
    "\u02bc OR \uff07 = \uff07",
    "\ufeff'\u2028'",
    "\U0001f3b8'",
]
NUL = ["a\0b", "'\0; DROP TABLE library_author; --", "\\\0'"]


async def comes_back(value: str) -> None:
    """Write and find it in every way that goes through our code."""
    author = await Author.objects.acreate(name=value)
    with statements() as sent:
        for _ in range(7):  # compiled once, prepared by psycopg, used again
            assert (await Author.objects.aget(name=value)).pk == author.pk
        assert await Author.objects.filter(name=value).acount() == 1
        assert [a.name for a in await Author.objects.filter(name__contains=value).alist()] == [
            value
        ]
    # Of what was compiled for an earlier value nothing is left in the text, nor of this one.
    assert len(set(sent[:7])) == 1
    assert "%s" in sent[0]
    if len(value) > 3:
        assert not any(value in text for text in sent)
    author.name = value * 2
    await author.asave()
    assert await Author.objects.filter(name=value * 2).aexists()
    async with acursor() as cursor:
        await cursor.execute("SELECT %s, %s", [value, value])
        assert await cursor.fetchone() == (value, value)
        await cursor.execute("SELECT name FROM library_author WHERE name = %s", [value * 2])
        assert await cursor.fetchall() == [(value * 2,)]
    await author.adelete()


@pytest.mark.parametrize("server_side_binding", [False, True], ids=["client", "server"])
def test_postgresql(postgresql: dict[str, Any], run: Run, server_side_binding: bool) -> None:
    postgresql["OPTIONS"] |= {"server_side_binding": server_side_binding}
    options(max_size=1)

    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT current_query(), %s::text", ["a value"])
            text, value = (await cursor.fetchone()) or ("", "")
        assert value == "a value"
        assert ("$1" in text, "a value" in text) == (server_side_binding, not server_side_binding)
        for value in VALUES:
            async with acursor() as cursor:
                await cursor.execute("SELECT %s::text", [value])
                assert await cursor.fetchone() == (value,)
            await comes_back_as_text(value) if server_side_binding else await comes_back(value)
        for value in NUL:
            with pytest.raises((ValueError, DataError), match="NUL"):
                await Author.objects.aget(name=value)
            with pytest.raises((ValueError, DataError), match="NUL"):
                await Author.objects.acreate(name=value)
        assert await Author.objects.acount() == 0

    run(main)


async def comes_back_as_text(value: str) -> None:
    """The same where the server must be told the type of what it only returns."""
    author = await Author.objects.acreate(name=value)
    for _ in range(7):
        assert (await Author.objects.aget(name=value)).pk == author.pk
    assert await Author.objects.filter(name__contains=value).acount() == 1
    await author.adelete()


def test_sqlite(sqlite: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        for value in VALUES:
            await comes_back(value)
        for value in NUL:
            await Author.objects.acreate(name=value)
            assert (await Author.objects.aget(name=value)).name == value
        assert await Author.objects.acount() == len(NUL)

    run(main)


@pytest.mark.parametrize(
    ("charset", "mode"),
    [
        ("utf8mb4", "STRICT_TRANS_TABLES"),
        ("utf8mb4", "NO_BACKSLASH_ESCAPES"),
        ("utf8mb4", "ANSI_QUOTES"),
        ("gbk", "STRICT_TRANS_TABLES"),
        ("gbk", "NO_BACKSLASH_ESCAPES"),
        ("cp932", "STRICT_TRANS_TABLES"),
        ("big5", "STRICT_TRANS_TABLES"),
    ],
)
def test_mysql(mysql: dict[str, Any], run: Run, charset: str, mode: str) -> None:
    mysql["OPTIONS"] |= {"charset": charset, "sql_mode": mode}
    encoding = {"utf8mb4": "utf8"}.get(charset, charset)

    def has(value: str) -> bool:
        try:
            value.encode(encoding)
        except UnicodeEncodeError:
            return False
        return True

    async def main() -> None:
        tried = [value for value in VALUES if has(value)]
        assert len(tried) >= len(VALUES) - 6
        for value in tried:
            await compared_by_bytes(value)
        for value in NUL:
            author = await Author.objects.acreate(name=value)
            assert (await Author.objects.aget(pk=author.pk)).name == value
        assert await Author.objects.acount() == len(NUL)

    run(main)


async def compared_by_bytes(value: str) -> None:
    """MySQL takes some of these texts for equal, so they are found by their key."""
    author = await Author.objects.acreate(name=value)
    assert (await Author.objects.aget(pk=author.pk)).name == value
    assert (await Author.objects.aget(name=value)).pk == author.pk
    async with acursor() as cursor:
        await cursor.execute("SELECT %s", [value])
        assert await cursor.fetchone() == (value,)
        await cursor.executemany("UPDATE library_author SET name = %s WHERE id = %s",
                                 [[value, author.pk], [value, author.pk]])  # fmt: skip
    await author.adelete()


def test_a_lock_behind_a_character_that_ends_with_a_backslash(
    mysql: dict[str, Any], run: Run
) -> None:
    """What a statement leaves is read as the server reads it."""
    mysql["OPTIONS"] |= {"charset": "gbk"}
    options(max_size=1)

    async def main() -> None:
        name = f"nuages-gbk-{mysql['NAME']}"[:64]
        assert await fetch(f"SELECT GET_LOCK('{name}', 0), %s", "縗") == 1
        assert await fetch(f"SELECT '縗', GET_LOCK('{name}', 0), ' '") == "縗"
        assert await fetch("SELECT IS_USED_LOCK(%s)", name) is None

    run(main)
