"""What every page's header and footer need."""

from django.http import HttpRequest

from magazine.models import Section


def sections(request: HttpRequest) -> dict[str, object]:
    """Give the templates the list of sections, as (slug, name) pairs."""
    return {"sections": Section.choices}
