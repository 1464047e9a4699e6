"""App configuration of the magazine."""

from django.apps import AppConfig


class MagazineConfig(AppConfig):
    """The magazine: authors, articles, tags and comments."""

    name = "magazine"
    verbose_name = "Magazine"
