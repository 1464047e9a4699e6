"""Views made of django.contrib and the generic views, as a project writes them; all sync.

To be imported when the apps are installed.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.contrib.contenttypes.prefetch import GenericPrefetch
from django.contrib.flatpages.sitemaps import FlatPageSitemap
from django.contrib.postgres.search import SearchQuery, SearchRank, SearchVector
from django.contrib.sitemaps import GenericSitemap, Sitemap
from django.contrib.sitemaps.views import index, sitemap
from django.contrib.sites.shortcuts import get_current_site
from django.contrib.syndication.views import Feed
from django.forms import inlineformset_factory, modelformset_factory
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import include, path
from django.utils.feedgenerator import Atom1Feed
from django.views import generic

from tests.library.models import Author, Book, Note, Scan, Tag


class NewBooks(Feed):
    title = "New books"
    link = "/feed/"
    description = "Those with copies"

    def items(self) -> Any:
        return Book.objects.order_by("title")[:5]

    def item_description(self, item: Any) -> str:
        return f"by {item.author.name}"  # a query for each

    def item_link(self, item: Any) -> str:
        return f"/detail/{item.pk}/"


class NewBooksAtom(NewBooks):
    feed_type = Atom1Feed
    subtitle = NewBooks.description


class ByAuthor(Feed):
    """A feed of an object, which is looked up."""

    link = "/feed/"

    def get_object(self, request: Any, pk: int) -> Any:
        return Author.objects.get(pk=pk)

    def title(self, author: Any) -> str:
        return f"Books of {author.name}"

    def items(self, author: Any) -> Any:
        return author.books.all()

    def item_link(self, item: Any) -> str:
        return f"/detail/{item.pk}/"


class Books(Sitemap):
    limit = 2  # more than one page of an index
    changefreq = "daily"

    def items(self) -> Any:
        return Book.objects.order_by("pk")

    def location(self, item: Any) -> str:
        return f"/detail/{item.pk}/?by={item.author.pk}"


class Users(GenericSitemap):
    def location(self, item: Any) -> str:
        return f"/users/{item.pk}/"


SITEMAPS = {
    "books": Books,
    "users": Users({"queryset": User.objects.order_by("pk"), "date_field": "date_joined"}),
    "pages": FlatPageSitemap,
}


def humanized(request: Any) -> HttpResponse:
    return render(request, "humanized.html", {"users": User.objects.all()})


def content_types(request: Any) -> HttpResponse:
    ContentType.objects.clear_cache()
    kind = ContentType.objects.get_for_model(Book)
    kinds = ContentType.objects.get_for_models(Book, Author, Tag)
    querysets: list[Any] = [Book.objects.select_related("author"), Author.objects.all()]
    notes = Note.objects.prefetch_related(GenericPrefetch("subject", querysets)).order_by("pk")
    found = [str(note.subject) for note in notes]
    found += [str(note.subject) for note in Note.objects.prefetch_related("subject")]
    found += [note.text for note in Book.objects.get(title="one").notes.all()]
    return HttpResponse(f"{kind.name} {len(kinds)} {' '.join(found)} {kind.model_class()}")


def current_site(request: Any) -> HttpResponse:
    return HttpResponse(f"{get_current_site(request).domain} {request.site.name}")


def search(request: Any) -> HttpResponse:
    vector = SearchVector("title", weight="A") + SearchVector("author__name", weight="B")
    query = SearchQuery(request.GET["q"], search_type="websearch")
    found = (
        Book.objects.annotate(rank=SearchRank(vector, query), search=vector)
        .filter(search=query)
        .order_by("-rank", "title")
    )
    return HttpResponse(", ".join(f"{book.title} {book.rank > 0}" for book in found))


class BookForm(forms.ModelForm):
    class Meta:
        model = Book
        fields = ["title", "author", "tags", "copies"]


class ChoiceForm(forms.Form):
    author = forms.ModelChoiceField(Author.objects.order_by("name"))
    tags = forms.ModelMultipleChoiceField(Tag.objects.all(), required=False)

    def clean_author(self) -> Any:
        author = self.cleaned_data["author"]
        if not author.books.exists():
            raise forms.ValidationError("no books")
        return author


class Choice(generic.FormView):
    form_class = ChoiceForm
    template_name = "page.html"

    def form_valid(self, form: Any) -> HttpResponse:
        return HttpResponse(f"chosen {form.cleaned_data['author']}")


class BookCreate(generic.CreateView):
    model = Book
    form_class = BookForm
    template_name = "page.html"
    success_url = "/list/"


class BookUpdate(generic.UpdateView):
    model = Book
    form_class = BookForm
    template_name = "page.html"
    success_url = "/list/"


class BookDelete(generic.DeleteView):
    model = Book
    template_name = "page.html"
    success_url = "/list/"


class BookList(generic.ListView):
    queryset = Book.objects.order_by("title")
    template_name = "page.html"
    paginate_by = 2


class BookDetail(generic.DetailView):
    model = Book
    template_name = "page.html"


Titles = forms.formset_factory(ChoiceForm, extra=1)
BookFormSet: Any = modelformset_factory(Book, fields=["title", "copies"], extra=0)
AuthorBooks: Any = inlineformset_factory(Author, Book, fields=["title"], extra=1)


def formset(request: Any) -> HttpResponse:
    made = Titles(request.POST or None)
    if made.is_valid():
        return HttpResponse(f"valid {made.cleaned_data[0]['author']}")
    return HttpResponse(made.as_p())


def model_formset(request: Any) -> HttpResponse:
    made = BookFormSet(request.POST or None, queryset=Book.objects.order_by("pk"))
    if request.POST and made.is_valid():
        return HttpResponse(f"saved {len(made.save())}")
    return HttpResponse(made.as_p())


def inline_formset(request: Any) -> HttpResponse:
    made = AuthorBooks(request.POST or None, instance=Author.objects.get(name="Ursula"))
    if request.POST and made.is_valid():
        return HttpResponse(f"saved {len(made.save())}")
    return HttpResponse(made.as_p())


class ScanForm(forms.ModelForm):
    class Meta:
        model = Scan
        fields = ["file", "image"]


class ScanCreate(generic.CreateView):
    model = Scan
    form_class = ScanForm
    template_name = "page.html"
    success_url = "/list/"


class SignUp(generic.CreateView):
    form_class = UserCreationForm
    template_name = "page.html"
    success_url = "/list/"


class Dated:
    model = User
    date_field = "date_joined"
    template_name = "page.html"
    allow_future = True
    make_object_list = True
    month_format = "%m"


def dated(view: Any) -> Any:
    return type(view.__name__, (Dated, view), {}).as_view()


site = admin.AdminSite()
site.register(Scan)

urlpatterns = [
    path("feed/", NewBooks()),
    path("feed/atom/", NewBooksAtom()),
    path("feed/<int:pk>/", ByAuthor()),
    path("sitemap.xml", index, {"sitemaps": SITEMAPS}),
    path(
        "sitemap-<section>.xml",
        sitemap,
        {"sitemaps": SITEMAPS},
        name="django.contrib.sitemaps.views.sitemap",
    ),
    path("pages/", include("django.contrib.flatpages.urls")),
    path("humanized/", humanized),
    path("contenttypes/", content_types),
    path("site/", current_site),
    path("search/", search),
    path("template/", generic.TemplateView.as_view(template_name="page.html")),
    path("redirect/", generic.RedirectView.as_view(url="/list/")),
    path("list/", BookList.as_view()),
    path("detail/<int:pk>/", BookDetail.as_view()),
    path("create/", BookCreate.as_view()),
    path("update/<int:pk>/", BookUpdate.as_view()),
    path("delete/<int:pk>/", BookDelete.as_view()),
    path("choice/", Choice.as_view()),
    path("formset/", formset),
    path("modelformset/", model_formset),
    path("inlineformset/", inline_formset),
    path("scan/", ScanCreate.as_view()),
    path("signup/", SignUp.as_view()),
    path("archive/", dated(generic.ArchiveIndexView)),
    path("archive/<int:year>/", dated(generic.YearArchiveView)),
    path("archive/<int:year>/<int:month>/", dated(generic.MonthArchiveView)),
    path("archive/<int:year>/week/<int:week>/", dated(generic.WeekArchiveView)),
    path("archive/<int:year>/<int:month>/<int:day>/", dated(generic.DayArchiveView)),
    path("archive/today/", dated(generic.TodayArchiveView)),
    path("archive/<int:year>/<int:month>/<int:day>/<int:pk>/", dated(generic.DateDetailView)),
    path("admin/", site.urls),
]
