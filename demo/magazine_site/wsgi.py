"""The WSGI application: the same site on a classic server, with blocking connections."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "magazine_site.settings")

application = get_wsgi_application()
