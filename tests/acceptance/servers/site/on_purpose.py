"""Errors made on purpose, by a view or by what the tests send; the log leaves them out."""

import logging


class OnPurpose(Exception):
    """Raised by the view `broken`."""


class Unexpected(logging.Filter):
    """Lets everything pass but what is on purpose, or the client's own fault."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("django.security."):
            return False
        return not (record.exc_info and isinstance(record.exc_info[1], OnPurpose))
