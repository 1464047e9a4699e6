"""FastAPI with SQLAlchemy 2 on asyncpg: an ORM session for each request, a pool of our size."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import String, Text, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.works import GATHERED_KEYS, PAUSE, POOL_SIZE

URL = os.environ["BENCH_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")

engine = create_async_engine(URL, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=30)
Session = async_sessionmaker(engine, expire_on_commit=False)
application = FastAPI()


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    author: Mapped[str] = mapped_column(String(100))
    body: Mapped[str] = mapped_column(Text)
    published: Mapped[bool]
    views: Mapped[int]


async def get_session() -> AsyncIterator[AsyncSession]:
    async with Session() as session:
        yield session


@application.get("/hello")
async def hello() -> JSONResponse:
    return JSONResponse({"message": "hello"})


@application.get("/row/{key}")
async def row(key: int, session: Annotated[AsyncSession, Depends(get_session)]) -> JSONResponse:
    article = await session.get_one(Article, key)
    return JSONResponse(
        {
            "id": article.id,
            "title": article.title,
            "author": article.author,
            "body": article.body,
            "published": article.published,
            "views": article.views,
        }
    )


async def slow(key: int) -> int:
    # A session serves one task at a time, so what is gathered has one each.
    async with Session() as session:
        query = select(Article.id, func.pg_sleep(PAUSE)).where(Article.id == key)
        found, _ = (await session.execute(query)).one()
        return found


@application.get("/gathered")
async def gathered() -> JSONResponse:
    return JSONResponse({"keys": await asyncio.gather(*(slow(key) for key in GATHERED_KEYS))})
