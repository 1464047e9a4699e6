"""`MySQLdb`, which Django's MySQL backend imports: PyMySQL under that name, for that import.

This stands below the other seams, because the engine needs it before any app is ready: Django
loads an engine with the first model.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

VERSION = (2, 2, 8, "final", 1)
"""The mysqlclient that PyMySQL stands for: Django 5.2 asks for 1.4.3, Django 6.1 for 2.2.1."""
_PARTS = ("constants", "constants.CLIENT", "constants.FIELD_TYPE", "converters")


@contextmanager
def mysqldb() -> Iterator[None]:
    """Make `import MySQLdb` work in the block: mysqlclient where it is installed, else PyMySQL.

    Afterwards nothing of PyMySQL's stand-in is left, so that nobody takes it for mysqlclient.
    """
    try:
        import_module("MySQLdb")
    except ImportError:
        added = stand_ins()
        sys.modules.update(added)
        try:
            yield
        finally:
            for name in added:
                del sys.modules[name]
    else:
        yield


def stand_ins() -> dict[str, types.ModuleType]:
    """Return what takes the place of mysqlclient's modules, by name."""
    driver = import_module("pymysql")
    package = types.ModuleType("MySQLdb")
    package.__dict__.update(driver.__dict__)
    package.__dict__.update(
        __name__="MySQLdb", version_info=VERSION, __version__=".".join(map(str, VERSION[:3]))
    )
    parts = {f"MySQLdb.{name}": import_module(f"pymysql.{name}") for name in _PARTS}
    return {"MySQLdb": package, **parts}
