"""The three works, as async views and, below sync/, as sync ones; logins for benchmarks.logins."""

from django.urls import URLPattern, URLResolver, include, path

from benchmarks.site import async_views, logins, sync_views


def works(views: object) -> list[URLPattern]:
    return [
        path("hello", views.hello),
        path("row/<int:key>", views.row),
        path("gathered", views.gathered),
    ]


urlpatterns: list[URLPattern | URLResolver] = [
    *works(async_views),
    path("sync/", include(works(sync_views))),
    path("login", logins.login),
    path("heart/start", logins.start_heart),
    path("heart/stop", logins.stop_heart),
]
