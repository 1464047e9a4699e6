"""The magazine's pages.

Every view is native async code: no query, template or form below runs in a thread. Three ways
to reach the ORM are shown side by side: awaited methods, which ``gather`` can run at the same
time (``index``); lazy relations in a view under ``@on_loop`` (``article``); and a transaction
(``article``, when it gets a comment).
"""

import asyncio

from django.contrib import messages
from django.db.models import Count, F, Q
from django.http import Http404, JsonResponse
from django.shortcuts import aget_object_or_404, redirect, render

from magazine.forms import CommentForm, SearchForm
from magazine.models import Article, Author, Comment, Section, Tag
from magazine.pagination import apaginate
from nuages import on_loop
from nuages.db import aatomic

# The header asks who is logged in, which is a query the template makes by itself when it gets
# there. On the loop it may: it waits like any awaited query.
arender = on_loop(render)


async def index(request, section=None):
    """The latest articles, of all sections or of one."""
    if section is not None and section not in Section.values:
        raise Http404(f"There is no section called {section}.")
    articles = Article.objects.published()
    if section:
        articles = articles.filter(section=section)
    page, tags, discussed = await asyncio.gather(
        apaginate(request, articles.aselect_related("author"), per_page=13),
        tag_cloud(),
        articles.order_by("-comment_count", "-published_at")[:5].alist(),
    )
    context = {
        "page": page,
        "tags": tags,
        "discussed": discussed,
        "section": Section(section) if section else None,
    }
    return await arender(request, "magazine/index.html", context)


async def tag_cloud(size=30):
    """The most used tags in alphabetical order, each with a ``weight`` from 1 to 5."""
    tags = (
        await Tag.objects.annotate(uses=Count("articles")).order_by("-uses", "name")[:size].alist()
    )
    for rank, tag in enumerate(tags):
        tag.weight = 5 - rank * 5 // len(tags)
    return sorted(tags, key=lambda tag: tag.name)


@on_loop
async def article(request, slug):
    """One article with its comments, and the form to add one.

    The template walks ``article.author.user``, ``article.tags`` and the comments lazily, as in
    any sync Django view. ``@on_loop`` is what allows that in a coroutine.
    """
    article = await aget_object_or_404(Article.objects.published(), slug=slug)
    form = CommentForm(instance=Comment(article=article))
    if request.method == "POST":
        form = CommentForm(request.POST, instance=Comment(article=article))
        if await form.ais_valid():
            return await save_comment(request, article, form)
    author = await article.aauthor
    more = await author.articles.published().exclude(pk=article.pk)[:3].alist()
    context = {"article": article, "form": form, "more": more}
    return render(request, "magazine/article.html", context)


async def save_comment(request, article, form):
    """Store the comment and count it, both or neither, and lead back to the page."""
    async with aatomic():
        comment = await form.asave()
        if comment.status == Comment.Status.PUBLISHED:
            # F(): two readers who post at the same moment are both counted.
            await Article.objects.filter(pk=article.pk).aupdate(
                comment_count=F("comment_count") + 1
            )
    if comment.status == Comment.Status.HELD:
        messages.info(request, "Thank you. An editor reads comments with links before they show.")
        return redirect(f"{article.get_absolute_url()}#reply")
    messages.success(request, "Thank you for your comment.")
    return redirect(comment)


async def author(request, slug):
    """A writer, with everything they wrote."""
    author = await aget_object_or_404(Author, slug=slug)
    articles = author.articles.published()
    page, account, by_section = await asyncio.gather(
        apaginate(request, articles),
        author.auser,
        articles.order_by("section").values("section").annotate(total=Count("pk")).alist(),
    )
    context = {"author": author, "account": account, "page": page, "by_section": by_section}
    return await arender(request, "magazine/author.html", context)


async def tag(request, slug):
    """Everything on one subject."""
    tag = await aget_object_or_404(Tag, slug=slug)
    articles = tag.articles.published().aselect_related("author")
    context = {"tag": tag, "page": await apaginate(request, articles)}
    return await arender(request, "magazine/tag.html", context)


async def search(request):
    """Articles that hold the searched words, in that order, in their title or body."""
    # Unbound before the first search, so that no field is in error on an empty page.
    form = SearchForm(request.GET if "q" in request.GET else None)
    page, query = None, ""
    if await form.ais_valid():
        query = form.cleaned_data["q"]
        found = Article.objects.published().filter(
            Q(title__icontains=query) | Q(body__icontains=query)
        )
        page = await apaginate(request, found.aselect_related("author"))
    context = {"form": form, "page": page, "query": query}
    return await arender(request, "magazine/search.html", context)


async def healthz(request):
    """Answer as soon as requests are served and the database is there, for start-up scripts."""
    return JsonResponse({"articles": await Article.objects.acount()})
