"""What a project writes where there is no plugin, for pyright say; right with the plugin too."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import ClassVar, assert_type

from django.db import models

from nuages.typing import AsyncModel, Manager, QuerySet
from shop.models import Author


class MagazineQuerySet(QuerySet["Magazine"]):
    def thin(self) -> MagazineQuerySet:
        return self.filter(pages__lt=50)


class Magazine(models.Model, AsyncModel):
    publisher: models.ForeignKey[Author, Author] = models.ForeignKey(Author, models.CASCADE)
    pages: models.IntegerField[int, int] = models.IntegerField()
    apublisher: Awaitable[Author]

    objects: ClassVar[Manager[Magazine]] = Manager()


async def queries(magazines: MagazineQuerySet) -> None:
    assert_type(await Magazine.objects.alist(), list[Magazine])
    assert_type(await Magazine.objects.filter(pages=1).alist(), list[Magazine])
    assert_type(await Magazine.objects.aselect_related("publisher").alist(), list[Magazine])
    assert_type(await Magazine.objects.order_by("pages")[:3].alist(), list[Magazine])
    assert_type(
        await magazines.thin().aprefetch_related("publisher").thin().alist(), list[Magazine]
    )
    assert_type(await Magazine.objects.aget(pk=1), Magazine)


async def relations(magazine: Magazine) -> None:
    assert_type(await magazine.apublisher, Author)
    await magazine.afull_clean()


async def wrong(magazine: Magazine) -> None:
    await Magazine.objects.aliste()  # error: mypy attr-defined, pyright reportAttributeAccessIssue
    page: int = await magazine.apublisher  # error: mypy assignment, pyright reportAssignmentType
