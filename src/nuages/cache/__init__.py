"""Caches on the event loop: a native Redis backend, and Django's own without threads.

`BACKEND: "nuages.cache.redis.RedisCache"` is the backend. What Django's local-memory, dummy and
database caches need is in `nuages.seams.cache`.
"""
