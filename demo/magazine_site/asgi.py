"""The ASGI application: ``uvicorn magazine_site.asgi:application``."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

from nuages.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "magazine_site.settings")

# uvicorn serves no files, and a demo should need no second server: Django's own handler serves
# the static files. A real site leaves them to its web server or to a CDN.
application = ASGIStaticFilesHandler(get_asgi_application())
