"""The rows that are there at the beginning."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections

from tests.library.models import Author, Book
from tests.soak.kinds import AUTHORS


def fill() -> None:
    """Make the tables and the rows; in a thread of its own, whose connection is closed."""
    call_command("migrate", run_syncdb=True, verbosity=0)
    User.objects.create_superuser("staff", password="soak")
    for number in range(AUTHORS):
        author = Author.objects.create(name=f"author {number:02}")
        for each in (0, 1):
            Book.objects.create(title=f"book {2 * number + each:03}", author=author)
    connections.close_all()
