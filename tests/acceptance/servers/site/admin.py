"""The site's admin."""

from django.contrib import admin

from tests.acceptance.servers.site.models import Item

admin.site.register(Item)
