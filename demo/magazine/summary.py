"""A summary of an article, streamed word by word as a language model would send it.

No model is asked: the summary is made of the article's own sentences, those that have most in
common with the rest. The way it reaches the page is the real one: server-sent events, each with
an id, so that a browser that lost its connection gets the words that it has not seen.
"""

import asyncio
import math
import random
import re
from collections import Counter
from collections.abc import AsyncIterator

from django.http import HttpRequest
from django.shortcuts import aget_object_or_404

from magazine.models import Article
from nuages.http import Event, EventStream

SENTENCES = 3

# A token and the pause before the next one, in seconds: uneven, as a model's are.
PAUSES = (0.015, 0.09)

# Too common to say what an article is about.
COMMON = """
about after again against also been before being between both could does down each every from
have having here into itself more most much must never only other over same should some such
than that their them then there these they this those through under until very were what when
where which while will with within would your
"""


async def summary(request: HttpRequest, slug: str) -> EventStream:
    """Stream the summary of an article: ``token`` events, then ``done``."""
    article = await aget_object_or_404(Article.objects.published(), slug=slug)
    tokens = tokenize(summarize(article.body))

    async def source(last_event_id: str | None) -> AsyncIterator[Event]:
        # The id is the number of tokens the page has; anything else is none of ours.
        ours = re.fullmatch("[0-9]{1,6}", last_event_id or "")
        seen = int(ours[0]) if ours else 0
        for number, token in enumerate(tokens[seen:], start=seen + 1):
            await asyncio.sleep(random.uniform(*PAUSES))  # noqa: S311 - a pause
            yield Event({"text": token}, id=number, event="token")
        # Without it the browser would take the end for a lost connection and ask again.
        yield Event({"words": len(tokens)}, event="done")

    return EventStream(source, request, retry=1000)


def summarize(body: str, size: int = SENTENCES) -> str:
    """Pick the ``size`` sentences whose words the article uses most, in the article's order."""
    common = set(COMMON.split())
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(body.split()))
    # Few words say little by themselves, and a lone quotation mark is half of what was said.
    whole = [text for text in sentences if len(text.split()) >= 8 and text.count('"') % 2 == 0]
    if len(whole) > size:
        sentences = whole
    words = [
        {word for word in re.findall(r"[^\W\d_]{4,}", sentence.lower()) if word not in common}
        for sentence in sentences
    ]
    uses = Counter(word for found in words for word in found)

    def weight(number: int) -> float:
        # By the root of the length, or the longest sentences would always win.
        return sum(uses[word] - 1 for word in words[number]) / math.sqrt(len(words[number]) + 1)

    best = sorted(range(len(sentences)), key=weight, reverse=True)[:size]
    return " ".join(sentences[number] for number in sorted(best))


def tokenize(text: str) -> list[str]:
    """Split a text into words, each with the space before it."""
    return re.findall(r"\s*\S+", text)
