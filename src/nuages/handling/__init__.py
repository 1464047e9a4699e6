"""The way from request to response on the loop: middleware, view, errors, signals, deadline.

What `django.core.handlers.base.BaseHandler` does for async callers, in one bridge. It serves
the ASGI handler and Django's own test client alike; `seams/handlers.py` puts it in place.
"""
