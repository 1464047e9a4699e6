"""Django's own paginator, fed by awaited queries."""

from django.core.paginator import InvalidPage, Page, Paginator
from django.db.models import QuerySet
from django.http import Http404, HttpRequest


async def apaginate(request: HttpRequest, queryset: QuerySet, per_page: int = 12) -> Page:
    """Return the page that ``?page=`` asks for, loaded; raise Http404 when there is none."""
    paginator = Paginator(queryset, per_page)
    # Paginator.count is a cached property: setting it spares the blocking query.
    paginator.count = await queryset.acount()
    try:
        page = paginator.page(request.GET.get("page", 1))
    except InvalidPage as error:
        raise Http404(str(error)) from error
    page.object_list = await page.object_list.alist()
    return page
