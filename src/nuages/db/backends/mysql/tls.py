"""Contexts for TLS, each made once: PyMySQL makes one for every connection, TLS or not."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any

from nuages.bridge.offloading import off_loop

_FILES = ("ca", "capath", "cert", "key")
_contexts: dict[tuple[Any, ...], ssl.SSLContext] = {}


def context_for(options: Any, make: Callable[[Any], ssl.SSLContext]) -> ssl.SSLContext:
    """Return the context for PyMySQL's `ssl` options: a dict, or a context of the project's own.

    Without options (the connection is encrypted if the server can, but nothing is verified) no
    authority is read. Other contexts are made by `make`, in a bridge in a thread, and made anew
    when their files have changed.
    """
    if isinstance(options, ssl.SSLContext):
        return options
    known = [(name, repr(value)) for name, value in sorted(options.items())]
    key = (*known, *(_changed(options.get(name)) for name in _FILES))
    context = _contexts.get(key)
    if context is None:
        # Without arguments: frames outside this package show these, even the key's password.
        context = off_loop(lambda: make(options))() if options else _unverified()
        _contexts[key] = context
    return context


def _changed(path: Any) -> float | None:
    return os.stat(path).st_mtime if path and os.path.exists(path) else None


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
