"""Makes the site's tables and first rows: `python -m tests.acceptance.servers.site.prepare`."""

import django

django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402

from tests.acceptance.servers.site.models import Item  # noqa: E402

call_command("migrate", run_syncdb=True, verbosity=0)
User.objects.create_superuser("django", password="reinhardt")
Item.objects.bulk_create(Item(name=name) for name in ("Minor Swing", "Nuages", "Tears"))
