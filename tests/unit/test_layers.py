"""The layers of the package: imports go downwards, and patches live in the seams only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nuages

ROOT = Path(nuages.__file__).parent

# Upwards: what a module may import is what stands on its own line or above. A package stands
# for all of its modules but those that stand further up themselves.
LAYERS = [
    {
        "nuages.additions",
        "nuages.conf",
        "nuages.exceptions",
        "nuages.progress",
        "nuages.tracebacks",
    },
    {"nuages.bridge"},
    {"nuages.seams.mysqldb"},
    {"nuages.cache", "nuages.stopping"},
    # The database, from who may use a connection up to what users call.
    {"nuages.db.engines", "nuages.db.pool"},
    {"nuages.db.scopes"},
    {"nuages.db.routing", "nuages.db.backends.base"},
    {"nuages.db.testing"},
    {"nuages.db.backends"},
    {"nuages.db.atomic"},
    {"nuages.db.transaction", "nuages.db.published", "nuages.db.forking"},
    {"nuages.db"},
    {"nuages.handling"},
    {"nuages.seams"},
    {"nuages.http", "nuages.mail", "nuages.mypy", "nuages.typing"},
    {"nuages.asgi", "nuages.checks"},
    {"nuages.apps", "nuages.ipython", "nuages.management"},
    {"nuages.test"},
]
FACE = "nuages"
"""The package itself: it shows the bridge's names, and every import of a module runs it."""

PATHS = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = ("nuages", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def layer_of(module: str) -> int:
    name = module
    while name:
        for number, layer in enumerate(LAYERS):
            if name in layer:
                return number
        name = name.rpartition(".")[0]
    raise AssertionError(f"{module} is in no layer: put it into LAYERS")


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`, which never runs."""
    for child in ast.iter_child_nodes(tree):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            for other in child.orelse:
                yield other
                yield from running_nodes(other)
            continue
        yield child
        yield from running_nodes(child)


MODULES = {name_of(path) for path in PATHS}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, inside functions too."""
    found: set[str] = set()
    for node in running_nodes(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES) or {module}
    return found


def ours(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.split(".")[0] == "nuages"}


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    module = name_of(path)
    if module == FACE:
        assert ours(path) <= {"nuages.bridge", "nuages.bridge.offloading"}
        return
    mine = layer_of(module)
    upwards = {name for name in ours(path) if name == FACE or layer_of(name) > mine}
    assert not upwards, f"{module} imports from above: {sorted(upwards)}"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """What imports itself, by others: the strongly connected components (Tarjan)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            component = stack[stack.index(name) :]
            del stack[-len(component) :]
            if len(component) > 1:
                found.append(sorted(component))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def test_nothing_imports_itself_by_others() -> None:
    graph = {name_of(path): ours(path) & MODULES - {FACE, name_of(path)} for path in PATHS}
    assert circles(graph) == []


def test_the_search_for_circles_finds_them() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "d"}}
    assert circles(graph) == [["b", "c"]]


def test_the_bridge_needs_nothing_of_nuages_but_its_errors() -> None:
    for path in (ROOT / "bridge").glob("*.py"):
        assert all(
            name == "nuages.exceptions" or name.startswith("nuages.bridge") for name in ours(path)
        )


def test_the_bottom_needs_nothing() -> None:
    for module in LAYERS[0]:
        assert ours(ROOT / f"{module.removeprefix('nuages.')}.py") == set()


def test_nobody_imports_a_backend_but_by_its_engine() -> None:
    """A driver may be missing; `ENGINE` is what names it."""
    vendors = ("mysql", "postgresql", "sqlite3")
    backends = {f"nuages.db.backends.{vendor}" for vendor in vendors}
    for path in PATHS:
        module = name_of(path)
        for name in ours(path):
            vendor = ".".join(name.split(".")[:4])
            if vendor in backends:
                assert module.startswith(vendor), f"{module} imports {name}"


def test_only_the_bridge_knows_greenlets() -> None:
    users = {name_of(path) for path in PATHS if "greenlet" in imports_of(path)}
    assert users == {"nuages.bridge.core"}


# Patching


def foreign_names(tree: ast.Module) -> set[str]:
    """The names in a module that were imported from anywhere but nuages."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(a.asname or a.name).split(".")[0] for a in node.names
                      if not a.name.startswith("nuages")}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("nuages"):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def root_of(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def patches(source: str) -> list[int]:
    """The lines where something is set on, or deleted from, what another package defines."""
    tree = ast.parse(source)
    foreign = foreign_names(tree)
    lines: list[int] = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("setattr", "delattr")
        ):
            targets = [ast.Attribute(value=node.args[0], attr="", ctx=ast.Store())]
        for target in targets:
            elements = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            lines += [
                node.lineno
                for element in elements
                if isinstance(element, (ast.Attribute, ast.Subscript))
                and root_of(element) in foreign
            ]
    return lines


@pytest.mark.parametrize(
    "source",
    [
        "from django.db import connection\nconnection.cursor = None",
        "import django.db\ndjango.db.connection.cursor = None",
        "from django.db.models import query as q\nq.QuerySet.alist, x = None, 1",
        "from django.db.models import QuerySet\nsetattr(QuerySet, 'alist', None)",
        "from django.db import connections\nconnections.settings['default'] = {}",
        "import asyncio\ndel asyncio.run",
    ],
)
def test_the_search_for_patches_finds_them(source: str) -> None:
    assert patches(source) == [2]


@pytest.mark.parametrize(
    "path", [path for path in PATHS if ROOT / "seams" not in path.parents], ids=name_of
)
def test_nothing_patches_other_packages_outside_the_seams(path: Path) -> None:
    assert patches(path.read_text()) == []
