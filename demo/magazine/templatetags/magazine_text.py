"""Filters for search results."""

import re

from django import template
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe

register = template.Library()

# How much of the body is shown before and after the first match, in characters.
AROUND = 120


@register.filter
def highlight(text: str, query: str) -> SafeString:
    """Escape ``text`` and put ``<mark>`` around each ``query`` in it, whatever its case."""
    if not query:
        return escape(text)
    # The group makes split() keep what it split at: every second piece is a match. Each piece is
    # escaped by itself, so that a search for "amp" finds nothing inside an "&amp;".
    pieces = re.split(f"({re.escape(query)})", text, flags=re.IGNORECASE)
    marked = (
        format_html("<mark>{}</mark>", piece) if number % 2 else escape(piece)
        for number, piece in enumerate(pieces)
    )
    return mark_safe("".join(marked))  # noqa: S308 - each piece was escaped


@register.filter
def excerpt(text: str, query: str) -> str:
    """Cut ``text`` to whole words around the first ``query`` in it."""
    text = " ".join(text.split())
    match = re.search(re.escape(query), text, flags=re.IGNORECASE)
    start, end = match.span() if match else (0, 0)
    first = text.rfind(" ", 0, start - AROUND) + 1 if start > AROUND else 0
    last = text.find(" ", end + AROUND)
    return ("… " if first else "") + (text if last < 0 else text[:last] + " …")[first:]
