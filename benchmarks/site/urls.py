"""The three works, as async views and, below sync/, as sync ones."""

from django.urls import URLPattern, URLResolver, include, path

from benchmarks.site import async_views, sync_views


def works(views: object) -> list[URLPattern]:
    return [
        path("hello", views.hello),
        path("row/<int:key>", views.row),
        path("gathered", views.gathered),
    ]


urlpatterns: list[URLPattern | URLResolver] = [
    *works(async_views),
    path("sync/", include(works(sync_views))),
]
