"""The mypy plugin: what Nuages adds to Django's classes and to a project's models.

It stands before that of django-stubs, which sets Django up with the project's settings::

    plugins = ["nuages.mypy", "mypy_django_plugin.main"]

mypy takes the answer of the first plugin that has one for a class; the plugin that comes first
must be the one that answers for less. Two things are added, while mypy analyses a class:

* a base class of `nuages.additions` to each of Django's classes that have methods of ours;
* an attribute `a<relation>` to each model that has one at run time, for which the project's own
  models are asked. Its type is found where it is used: that of `<relation>` there, whatever the
  other plugin, or an annotation, makes of that.

And two methods of Django's may be coroutine functions in subclasses that are also ours, and only
there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cached_property, partial

from mypy.errorcodes import OVERRIDE
from mypy.nodes import (
    MDEF,
    ArgKind,
    AssignmentStmt,
    Block,
    CallExpr,
    Decorator,
    Expression,
    FuncDef,
    IfStmt,
    MemberExpr,
    MypyFile,
    NameExpr,
    SymbolTableNode,
    TempNode,
    TypeInfo,
    Var,
)
from mypy.options import Options
from mypy.plugin import (
    AttributeContext,
    ClassDefContext,
    MethodContext,
    Plugin,
    ReportConfigContext,
)
from mypy.types import (
    AnyType,
    CallableType,
    Instance,
    Type,
    TypeOfAny,
    TypeVarType,
    UnionType,
    get_proper_type,
)

_DJANGO = "mypy_django_plugin.main"
_TYPES = "nuages.additions"

ADDED: dict[str, tuple[str, tuple[int, ...]]] = {
    "django.db.models.query.QuerySet": ("AsyncQuerySet", (1,)),
    "django.db.models.manager.BaseManager": ("AsyncManager", (0,)),
    "django.db.models.query.RawQuerySet": ("AsyncRawQuerySet", (0,)),
    "django.db.models.base.Model": ("AsyncModel", ()),
    "django.forms.forms.BaseForm": ("AsyncForm", ()),
    "django.forms.models.BaseModelForm": ("AsyncModelForm", (0,)),
    "django.forms.formsets.BaseFormSet": ("AsyncFormSet", ()),
    "django.forms.models.BaseModelFormSet": ("AsyncModelFormSet", (0,)),
    "django.core.files.storage.base.Storage": ("AsyncStorage", ()),
    "django.core.files.base.File": ("AsyncFile", (0,)),
    "django.db.models.fields.files.FieldFile": ("AsyncFieldFile", ()),
    "django.core.mail.message.EmailMessage": ("AsyncEmailMessage", ()),
    "django.core.mail.backends.base.BaseEmailBackend": ("AsyncEmailBackend", ()),
    "django.test.utils.CaptureQueriesContext": ("AsyncQueriesContext", ()),
    "django.db.transaction.Atomic": ("AsyncAtomic", ()),
}
"""By Django's class: the class of `nuages.additions` it gets, and which of the type variables of
Django's class that class takes."""

_MAY_BE_ASYNC = {
    "django.core.management.base.BaseCommand": (
        "handle",
        "nuages.management.command.AsyncBaseCommand",
    ),
    "django.test.testcases.TestCase": ("setUpTestData", "nuages.test.cases._AsyncSteps"),
}
"""By Django's class: a method that may be a coroutine function in subclasses also ours."""
_MODULES = {name.rpartition(".")[0] for name in ADDED}
_AS_DJANGO = {
    "aselect_related": ("select_related", ("AsyncQuerySet", "AsyncManager")),
    "aprefetch_related": ("prefetch_related", ("AsyncQuerySet", "AsyncManager")),
    "aopen": ("open", ("AsyncStorage",)),
}
"""Methods whose calls mean what those of a method of Django's do: its name, and the classes that
have ours. What Django's accepts and returns is for django-stubs to say, with its plugin."""


class NuagesPlugin(Plugin):
    """The plugin that knows what is added to Django's classes and to the project's models."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        ours, django = (_position(options, name) for name in (__name__, _DJANGO))
        if django is None or (ours is not None and django < ours):
            sys.exit(
                f"{__name__} needs the plugin of django-stubs, and stands before it: "
                f'plugins = ["{__name__}", "{_DJANGO}"] in the configuration of mypy.'
            )

    @cached_property
    def relations(self) -> dict[str, dict[str, str]]:
        """The attributes of every model, by its full name: `aauthor` gives `author`.

        The plugin of django-stubs has set up Django by the time this is asked for.
        """
        from django.apps import apps

        from nuages import seams
        from nuages.db.orm.related import async_relations

        if not apps.is_installed("nuages"):
            sys.exit(
                f'{__name__}: "nuages" is not in INSTALLED_APPS of the settings that django-stubs '
                "reads (django_settings_module), so nothing of what this plugin tells would be "
                "there at run time. Add it, or leave the plugin out."
            )
        if not seams.installed():
            sys.exit(f"{__name__}: Nuages is not active: {'; '.join(seams.problems())}.")
        models = {
            base
            for model in apps.get_models(include_auto_created=True, include_swapped=True)
            for base in model.__mro__
            if hasattr(base, "_meta")
        }
        return {
            f"{model.__module__}.{model.__qualname__}": found
            for model in models
            if (found := dict(async_relations(model)))
        }

    def get_additional_deps(self, file: MypyFile) -> list[tuple[int, str, int]]:
        """Have `nuages.additions` read before Django's classes."""
        return [(10, _TYPES, -1)] if file.fullname in _MODULES else []

    def report_config_data(self, ctx: ReportConfigContext) -> dict[str, dict[str, str]] | None:
        """Return what the cache of a module depends on: the relations of its models."""
        prefix = f"{ctx.id}."
        found = {
            name: attributes
            for name, attributes in sorted(self.relations.items())
            if name.startswith(prefix)
        }
        return found or None

    def get_customize_class_mro_hook(
        self, fullname: str
    ) -> Callable[[ClassDefContext], None] | None:
        """Return the function that adds to a class of Django's, or to a model."""
        if fullname in ADDED:
            return partial(_add_base, *ADDED[fullname])
        if fullname in _MAY_BE_ASYNC:
            return partial(_let_be_async, _MAY_BE_ASYNC[fullname][0])
        if fullname in self.relations:
            return partial(_add_relations, self.relations[fullname])
        return None

    def get_base_class_hook(self, fullname: str) -> Callable[[ClassDefContext], None] | None:
        """Return the check of subclasses of classes whose methods may be async in ours."""
        found = self.lookup_fully_qualified(fullname)
        if found is not None and isinstance(found.node, TypeInfo):
            for theirs, (name, ours) in _MAY_BE_ASYNC.items():
                if found.node.has_base(theirs):
                    return partial(_refuse_async, name, ours)
        return None

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """Return the function that finds the type of `a<relation>`."""
        model, _, name = fullname.rpartition(".")
        relation = self.relations.get(model, {}).get(name)
        return None if relation is None else partial(_type_of_relation, relation)

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        """Return the function that gives a method the type that Django's own returns."""
        owner, _, name = fullname.rpartition(".")
        if name not in _AS_DJANGO:
            return None
        theirs, classes = _AS_DJANGO[name]
        found = self.lookup_fully_qualified(owner)
        if found is None or not isinstance(found.node, TypeInfo):
            return None
        of_ours = any(found.node.has_base(f"{_TYPES}.{added}") for added in classes)
        return partial(_returned_by, theirs) if of_ours else None


def _position(options: Options, name: str) -> int | None:
    paths = [path.partition(":")[0] for path in options.plugins]
    return paths.index(name) if name in paths else None


def _add_base(name: str, type_variables: tuple[int, ...], ctx: ClassDefContext) -> None:
    """Make a class of `nuages.additions` the last base of a class."""
    added, info = ctx.api.lookup_fully_qualified(f"{_TYPES}.{name}").node, ctx.cls.info
    assert isinstance(added, TypeInfo)
    arguments: list[Type] = [ctx.cls.type_vars[number] for number in type_variables]
    # A class may be analysed more than once: its bases are then set anew, its order is not.
    info.bases.append(Instance(added, arguments))
    if added not in info.mro:
        info.mro.insert(len(info.mro) - 1, added)  # `object` is the last


def _let_be_async(name: str, ctx: ClassDefContext) -> None:
    """Let overrides of one of Django's methods return a coroutine.

    mypy compares an override with the methods of all bases, so our class's method is no help.
    `_refuse_async` sees to which classes may have a coroutine function.
    """
    unknown = AnyType(TypeOfAny.special_form)
    for method in _methods(name, ctx.cls.defs):
        for declared in (method.type, method.unanalyzed_type):
            if isinstance(declared, CallableType) and not _has_coroutine(declared.ret_type):
                coroutine = ctx.api.named_type("typing.Coroutine", [unknown] * 3)
                declared.ret_type = UnionType([declared.ret_type, coroutine])


def _has_coroutine(declared: Type) -> bool:
    return isinstance(declared, UnionType) and any(
        isinstance(item, Instance) and item.type.name == "Coroutine" for item in declared.items
    )


def _refuse_async(name: str, ours: str, ctx: ClassDefContext) -> None:
    """Refuse a coroutine function that nobody would await."""
    if ctx.cls.info.has_base(ours):
        return
    for method in _methods(name, ctx.cls.defs):
        if method.is_coroutine:
            short = ours.rpartition(".")[2].replace("_AsyncSteps", "AsyncTestCase")
            ctx.api.fail(
                f'"{name}" is a coroutine function, which nobody awaits here; it may be one in a '
                f"subclass of {short}",
                method,
                code=OVERRIDE,
            )


def _methods(name: str, block: Block) -> Iterator[FuncDef]:
    for statement in block.body:
        function = statement.func if isinstance(statement, Decorator) else statement
        if isinstance(function, FuncDef) and function.name == name:
            yield function


def _add_relations(relations: dict[str, str], ctx: ClassDefContext) -> None:
    """Add the attributes to a model that does not declare them itself."""
    declared = set(_declared(ctx.cls.defs))
    awaitable = ctx.api.named_type("typing.Awaitable", [AnyType(TypeOfAny.special_form)])
    for name in relations:
        if name in declared:
            continue
        attribute = Var(name, awaitable)
        attribute.info = ctx.cls.info
        attribute._fullname = f"{ctx.cls.fullname}.{name}"
        attribute.is_property = True  # so nothing can be assigned
        ctx.cls.info.names[name] = SymbolTableNode(MDEF, attribute, plugin_generated=True)


def _declared(block: Block) -> Iterator[str]:
    """Yield the variables that the body of a class declares, under `if TYPE_CHECKING:` too."""
    for statement in block.body:
        if isinstance(statement, IfStmt):
            for inner in (*statement.body, *filter(None, [statement.else_body])):
                yield from _declared(inner)
        elif isinstance(statement, AssignmentStmt):
            yield from (name.name for name in statement.lvalues if isinstance(name, NameExpr))


def _type_of_relation(relation: str, ctx: AttributeContext) -> Type:
    """Return an awaitable of the type that the relation has on this object."""
    declared = get_proper_type(ctx.default_attr_type)
    if not isinstance(declared, Instance) or not declared.args:
        return ctx.default_attr_type
    if not isinstance(get_proper_type(declared.args[0]), AnyType):
        return declared  # the project's own annotation
    return declared.copy_modified(args=[_type_of_member(relation, ctx)])


def _type_of_member(name: str, ctx: AttributeContext) -> Type:
    """Return the type of an attribute of the same object."""
    own = ctx.type.upper_bound if isinstance(ctx.type, TypeVarType) else ctx.type
    own = get_proper_type(own)
    if isinstance(own, Instance) and own.type.get(name) is None:
        # The link to a parent that Django itself made (multi-table inheritance): django-stubs
        # does not know it.
        for base in own.type.mro:
            if name == f"{base.name.lower()}_ptr":
                return Instance(base, [])
    member = MemberExpr(TempNode(ctx.type, context=ctx.context), name)
    member.set_line(ctx.context)
    return ctx.api.get_expression_type(member)


def _returned_by(name: str, ctx: MethodContext) -> Type:
    """Return what the same call of another method of the object returns."""
    method = MemberExpr(TempNode(ctx.type, context=ctx.context), name)
    arguments: list[tuple[Expression, ArgKind, str | None]] = [
        argument
        for formal in zip(ctx.args, ctx.arg_kinds, ctx.arg_names, strict=True)
        for argument in zip(*formal, strict=True)
    ]
    call = CallExpr(
        method,
        [value for value, _, _ in arguments],
        [kind for _, kind, _ in arguments],
        [keyword for _, _, keyword in arguments],
    )
    for node in (method, call):
        node.set_line(ctx.context)
    found = ctx.api.get_expression_type(call)
    own = get_proper_type(ctx.default_return_type)
    if isinstance(own, Instance) and own.type.fullname == "typing.Coroutine":
        return own.copy_modified(args=[*own.args[:-1], found])
    return found


def plugin(version: str) -> type[NuagesPlugin]:
    """Return the plugin, whatever the version of mypy: only mypy's plugin API is used."""
    return NuagesPlugin
