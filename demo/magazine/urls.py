"""URLs of the magazine."""

from django.urls import path

from magazine import dashboard, summary, views

urlpatterns = [
    path("", views.index, name="index"),
    path("section/<slug:section>/", views.index, name="section"),
    path("articles/<slug:slug>/", views.article, name="article"),
    path("articles/<slug:slug>/summary/", summary.summary, name="summary"),
    path("authors/<slug:slug>/", views.author, name="author"),
    path("tags/<slug:slug>/", views.tag, name="tag"),
    path("search/", views.search, name="search"),
    path("dashboard/", dashboard.dashboard, name="dashboard"),
    path("api/headlines/", dashboard.api_headlines, name="api-headlines"),
    path("api/weather/", dashboard.api_weather, name="api-weather"),
    path("healthz", views.healthz, name="healthz"),
]
