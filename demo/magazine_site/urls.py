"""URLs of the site: the magazine, the account pages and the admin."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from nuages import on_loop

urlpatterns = [
    path("", include("magazine.urls")),
    path("login/", on_loop(LoginView.as_view(redirect_authenticated_user=True)), name="login"),
    path("logout/", on_loop(LogoutView.as_view()), name="logout"),
    path("admin/", admin.site.urls),
    # Browsers ask for this address on pages that name no icon, as the admin's do.
    path("favicon.ico", on_loop(RedirectView.as_view(url=static("magazine/logo.svg")))),
]
