"""The ASGI application: Nuages' or stock Django's, as BENCH_STACK says."""

import os

from django.core.asgi import get_asgi_application as get_stock_application

from nuages.asgi import get_asgi_application

if os.environ["BENCH_STACK"] == "nuages":
    application = get_asgi_application()
else:
    application = get_stock_application()
