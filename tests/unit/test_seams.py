"""The seams: every target is what we know, all of them are put in place, or none."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import django
import pytest
from django.db import connections, transaction
from django.db.models import Manager, QuerySet, query

from nuages import seams
from nuages.db.orm import to_async
from nuages.db.routing import Storage
from nuages.seams.table import Seam, shape, users_of

PRELUDE = """
    import sys
    import django
    from django.conf import settings
    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "nuages"],
        DATABASES={"default": {"ENGINE": "nuages.db.backends.sqlite3", "NAME": ":memory:"}},
    )
"""
REPORT = """
    django.setup()
    from nuages import seams
    from django.db import connections
    from django.db.models import QuerySet, query
    from asgiref.sync import sync_to_async
    from nuages.db.routing import Storage

    print("installed", seams.installed())
    print("routed", isinstance(connections._connections, Storage))
    print("native", query.sync_to_async is not sync_to_async)
    print("added", hasattr(QuerySet, "alist"))
    for problem in seams.problems():
        print("problem", problem)
"""


def with_django(doctored: str) -> list[str]:
    """Set the project up in a fresh interpreter, after `doctored` changed Django in it."""
    code = "".join(map(textwrap.dedent, (PRELUDE, doctored, REPORT)))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture(autouse=True)
def _temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a subprocess writes is removed with the test's folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture(scope="module", autouse=True)
def _those_of_tests_too() -> None:
    seams.install_for_tests()


NOTHING_IN_PLACE = ["installed False", "routed False", "native False", "added False"]


def test_the_django_that_runs_here_is_a_known_one() -> None:
    assert django.VERSION[:2] in seams.DJANGO_VERSIONS


def test_they_are_in_place_here() -> None:
    assert seams.installed()
    assert seams.problems() == []
    assert isinstance(vars(connections)["_connections"], Storage)
    assert vars(query)["sync_to_async"] is to_async.orm_to_async
    assert hasattr(QuerySet, "alist")
    assert hasattr(Manager, "alist")


TABLE = seams.all_seams() + seams.test_seams()


@pytest.mark.parametrize("seam", TABLE, ids=lambda seam: str(seam.target))
def test_every_seam_names_a_target_that_exists_and_a_reason(seam: Seam) -> None:
    owner, name = seam.owner()
    assert inspect.getattr_static(owner, name, None) is not None
    assert seam.reason.endswith(".")
    assert len(seam.reason.split()) >= 4 or seam.new


@pytest.mark.parametrize("seam", TABLE, ids=lambda seam: str(seam.target))
def test_every_seam_of_a_function_says_its_signature_or_its_callers(seam: Seam) -> None:
    """Else a changed Django would be overridden unseen."""
    route = seam.target == "django.db:connections._connections"
    assert seam.new or route or (seam.signature is not None) != (seam.callers is not None)


def test_no_target_is_named_twice() -> None:
    targets = [seam.target for seam in TABLE]
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize(
    "seam",
    [seam for seam in TABLE if seam.signature is not None],
    ids=lambda seam: str(seam.target),
)
def test_a_replacement_can_be_called_as_the_original(seam: Seam) -> None:
    owner, name = seam.owner()
    names = [parameter.name for parameter in parameters_of(seam)]
    if isinstance(inspect.getattr_static(owner, name), classmethod):
        del names[0]  # it is bound
    inspect.signature(getattr(owner, name)).bind(*names)


def parameters_of(seam: Seam) -> list[inspect.Parameter]:
    scope: dict[str, Any] = {}
    exec(f"def original{seam.signature}: ...", scope)
    return [
        parameter
        for parameter in inspect.signature(scope["original"]).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]


def test_installing_twice_is_harmless() -> None:
    before = {seam.target: inspect.getattr_static(*seam.owner()) for seam in TABLE}
    seams.install()
    after = {seam.target: inspect.getattr_static(*seam.owner()) for seam in TABLE}
    assert before == after
    assert transaction.Atomic.__enter__.__name__ == "__enter__"
    assert not hasattr(transaction.Atomic.__enter__.__wrapped__, "__wrapped__")


def test_the_seams_of_django_test_wait_for_a_test_run() -> None:
    """Importing `django.test` would make every start slower."""
    wait = """
        import sys
        django.setup()
        assert "django.test" not in sys.modules
        from django.db import connection
        connection.creation.create_test_db(verbosity=0)
        from django.test import SimpleTestCase
        assert SimpleTestCase._setup_and_call.__module__ == "django.test.testcases"
        assert hasattr(SimpleTestCase._setup_and_call, "__wrapped__")
        connection.creation.destroy_test_db(":memory:", verbosity=0)
    """
    assert with_django(wait)[0] == "installed True"


def test_a_test_run_on_an_unknown_django_ends_with_the_seams_that_do_not_fit() -> None:
    doctored = """
        from django.core.exceptions import ImproperlyConfigured
        from django.test import SimpleTestCase
        SimpleTestCase._setup_and_call = lambda self, result: None
        django.setup()
        from django.db import connection
        try:
            connection.creation.create_test_db(verbosity=0)
        except ImproperlyConfigured as error:
            assert "_setup_and_call has the signature (self, result), not" in str(error)
        else:
            raise AssertionError
    """
    assert with_django(doctored)[0] == "installed True"


def test_an_undoctored_django_gets_all_of_them() -> None:
    assert with_django("") == ["installed True", "routed True", "native True", "added True"]


@pytest.mark.parametrize(
    ("doctored", "words"),
    [
        (
            """
            from django.db.transaction import Atomic
            Atomic.__enter__ = lambda self, more=None: None
            """,
            "django.db.transaction:Atomic.__enter__ has the signature (self, more=None), "
            "not (self)",
        ),
        (
            """
            from django.db.models.query import QuerySet
            del QuerySet.aiterator
            """,
            "django.db.models.query:QuerySet.aiterator does not exist",
        ),
        (
            """
            from django.db.models import query
            del query.BaseIterable
            """,
            "django.db.models.query:BaseIterable._async_generator cannot be found",
        ),
        (
            """
            from django.db.models import query
            query.QuerySet.aselect_related = lambda self: None
            """,
            "django.db.models.query:QuerySet.aselect_related exists already",
        ),
        (
            """
            import pathlib, tempfile
            from django.db.models import query
            copy = pathlib.Path(tempfile.mkdtemp()) / "query.py"
            added = chr(10) + "def anew(function): return sync_to_async(function)" + chr(10)
            copy.write_text(pathlib.Path(query.__file__).read_text() + added)
            query.__file__ = str(copy)
            """,
            "django.db.models.query:sync_to_async is used otherwise: new in ['anew'], "
            "no more in []",
        ),
        (
            """
            from django.db.models import query
            query.__file__, query.__loader__, query.__spec__ = "/nowhere/query.py", None, None
            """,
            "django.db.models.query:sync_to_async: the module's source cannot be read",
        ),
    ],
    ids=["signature", "missing", "owner missing", "exists", "unknown caller", "no source"],
)
def test_where_one_does_not_fit_none_is_put_in_place_and_the_problem_is_named(
    doctored: str, words: str
) -> None:
    lines = with_django(doctored)
    assert lines[:4] == NOTHING_IN_PLACE
    assert len(lines) == 5, lines
    assert lines[4].startswith(f"problem {words}")


def test_a_module_that_calls_a_replaced_name_less_is_named_too() -> None:
    module = import_module("django.db.models.base")
    seam = Seam(
        "django.db.models.base:sync_to_async",
        "Test.",
        lambda original: original,
        callers=users_of(module, "sync_to_async") | {"agone"},
    )
    assert seam.problem() is not None
    assert "no more in ['agone']" in str(seam.problem())


def test_a_seam_of_a_later_django_does_not_apply() -> None:
    def seam(since: tuple[int, int]) -> Seam:
        return Seam("nowhere:nothing", "Test.", lambda original: original, since=since)

    assert seam((5, 2)).applies()
    assert not seam((99, 0)).applies()


def test_a_shape_is_a_signature_without_annotations() -> None:
    def function(first: int, *args: str, keyword: bool = True, **kwargs: Any) -> None: ...

    assert shape(function) == "(first, *args, keyword=True, **kwargs)"


def test_every_user_of_a_name_is_found_however_deep(tmp_path: Any) -> None:
    path = tmp_path / "module_with_users.py"
    path.write_text(
        textwrap.dedent("""
        from asgiref.sync import sync_to_async

        ready = sync_to_async(print)

        def plain(): ...

        class Thing:
            def method(self):
                def inner():
                    return sync_to_async(print)
                return inner

            async def other(self):
                return [sync_to_async(item) for item in ()]
        """)
    )
    module = types.ModuleType("module_with_users")
    module.__file__ = str(path)
    found = users_of(module, "sync_to_async")
    assert found - {"<listcomp>"} >= {"inner"}
    assert "plain" not in found
    assert found & {"other", "<listcomp>"}
