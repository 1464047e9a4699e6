"""The site's URLs."""

from django.contrib import admin
from django.urls import path, re_path

from tests.acceptance.servers.site import views, waiting

urlpatterns = [
    path("admin/", admin.site.urls),
    path("hello/", views.hello),
    path("items/", views.item_list),
    path("items/<int:pk>/", views.one_item),
    path("loop-items/", views.loop_items),
    path("sync-items/", views.sync_items),
    path("login/", views.login),
    path("session/", views.session),
    path("form/", views.form),
    path("upload/", views.upload),
    path("body/", views.body),
    path("unread/", views.unread),
    path("headers/", views.headers),
    path("redirect/", views.redirect),
    path("missing/", views.missing),
    path("broken/", views.broken),
    path("nothing/", views.nothing),
    path("state/", views.state),
    path("info/", views.info),
    path("gathered/", waiting.gathered),
    path("sleep/<token>/", waiting.sleep),
    path("locked/<token>/<int:key>/", waiting.locked),
    path("stream/<token>/", waiting.stream),
    path("sync-stream/", waiting.sync_stream),
    path("silent/<token>/", waiting.silent),
    path("events/<token>/", waiting.events),
    path("file/", views.file),
    path("sync-endless/<token>/", waiting.sync_endless),
    path("endless/<token>/", waiting.endless),
    path("produced/<token>/", waiting.how_many),
    re_path(r"^path/(?P<rest>.*)$", views.echo_path),
]
