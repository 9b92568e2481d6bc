"""Declarations of classes (constructor parameters, capabilities, docstring), read from source without importing them.

Importing a model means importing torch, which takes a second or more. Classes whose source cannot be found or read this
way (built-in ones, made at run time) are imported and inspected instead.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from metarun import types
from metarun.config.lineage import Ancestor, linearised
from metarun.config.paths import user_directories
from metarun.errors import UserError, nearest

_NAMES = {**vars(typing), **vars(types), "Sequence": Sequence, "Mapping": Mapping, "Path": Path, "typing": typing}
_CAPABILITIES = ("kind", "modality", "modalities", "role", "roles", "kinds", "metric", "higher_is_better")
_OF_TYPES = ("typing", "collections.abc", "metarun.types")
_FOREIGN = {"torch", "abc", "typing", "numpy", "builtins"}


@dataclass(frozen=True)
class Parameter:
    """A constructor's parameter. ``annotation`` is ``Any`` if it is missing or cannot be resolved."""

    annotation: Any
    required: bool


@dataclass(frozen=True)
class Component:
    """The annotation of a parameter that takes an object of a class. In the configuration it is a section of its
    own.
    """

    path: str


@dataclass
class Declaration:
    """The declaration of a class.

    Attributes:
        target: Import path of the class.
        lineage: The class and its base classes in Python's method resolution order; foreign ones by their path alone,
            as named in the source.
        doc: Docstring.
        parameters: Parameters of the constructor by name.
        takes_any: True if the constructor has ``**kwargs``.
        attributes: Class attributes with literal values, including inherited ones.
    """

    target: str
    lineage: tuple[Ancestor, ...] = ()
    doc: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    takes_any: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def ancestors(self) -> tuple[str, ...]:
        """Import paths of the class and its base classes."""
        return tuple(each.path for each in self.lineage)

    @property
    def is_module(self) -> bool:
        """True if the class is known to be a torch module, which can only be given as a section."""
        return any(path.startswith("torch.nn.") and path.endswith(".Module") for path in self.ancestors)


@cache
def declaration(target: str) -> Declaration:
    """Return the declaration of the class at import path ``target``; raises :class:`UserError` if there is none."""
    module_name, _, name = target.rpartition(".")
    if not module_name:
        raise UserError(f"_target_: '{target}' is not an import path of the form package.module.Class")
    tree = source(module_name)
    if tree is None:
        return _inspected(module_name, name)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        origin = _imported_from(tree, name, module_name)
        if origin is not None and not _foreign(origin):  # re-exported
            try:
                return declaration(origin)
            except (UserError, RecursionError):
                return _inspected(module_name, name)
        if origin or name in _defined(tree):
            return _inspected(module_name, name)
        offered = [*classes, *reexported(tree)]
        raise UserError(f"_target_: module '{module_name}' has no class '{name}'{nearest(name, offered)}")
    node = classes[name]
    names = _NAMES | _aliases(tree)

    def annotated(annotation: ast.expr | None) -> Any:
        known = _type(annotation, names)
        path = _base_path(tree, module_name, classes, annotation) if known is Any and annotation else None
        return known if path is None or _foreign(path) else Component(path)

    lineages: list[Sequence[Ancestor]] = []
    for base in node.bases:
        path = _base_path(tree, module_name, classes, base)
        if path is None or _foreign(path):
            lineages.append([Ancestor(path or ast.unparse(base))])
        else:
            try:
                lineages.append(declaration(path).lineage)
            except UserError:
                return _inspected(module_name, name)
    constructor = None
    if init := next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None):
        constructor = _parameters(init.args, annotated)
    elif any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        constructor = {n.target.id: Parameter(annotated(n.annotation), n.value is None) for n in fields}, False  # type: ignore[union-attr]
    own = Ancestor(target, dict(_literals(node)), constructor)
    result = Declaration(target, (own, *linearised(lineages)), ast.get_docstring(node) or "")
    for ancestor in reversed(result.lineage):
        result.attributes |= ancestor.attributes
        if ancestor.constructor is not None:
            result.parameters, result.takes_any = dict(ancestor.constructor[0]), ancestor.constructor[1]
    return result


@cache
def source(module_name: str) -> ast.Module | None:
    """Return the parsed module, or ``None`` if it has no Python source or is the running script or notebook."""
    if module_name == "__main__":
        return None
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError as error:
        where = _looked_in(str(error.name))
        raise UserError(f"_target_: cannot import '{module_name}': no module named '{error.name}'{where}") from None
    except (ImportError, ValueError) as error:
        raise UserError(f"_target_: cannot import '{module_name}': {error}") from None
    if spec is None:
        raise UserError(f"_target_: no module named '{module_name}'{_looked_in(module_name)}")
    if not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"_target_: {spec.origin}, line {error.lineno}: {error.msg}") from None


def attributes(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a section's class, with ``kinds`` restricted to those that every inner section
    supports.
    """
    declared = dict(declaration(str(section["_target_"])).attributes)
    for inner in section.values():
        if is_section(inner) and (kinds := attributes(inner).get("kinds")):
            declared["kinds"] = tuple(k for k in declared.get("kinds", kinds) if k in kinds)
    return declared


def capabilities(thing: Any) -> dict[str, Any]:
    """Return the capabilities that a class or an object has as attributes."""
    return {name: getattr(thing, name) for name in _CAPABILITIES if hasattr(thing, name)}


def is_section(value: Any) -> bool:
    """Return whether a configuration's value describes an object."""
    return isinstance(value, Mapping) and "_target_" in value


def _foreign(path: str) -> bool:
    return path.split(".")[0] in _FOREIGN


def _looked_in(module_name: str) -> str:
    """Return the advice for a module that is not found: the places of modules, and where it lies if that is near."""
    above = [*Path.cwd().parents, *(each.parent for each in user_directories())]
    file, package = f"{module_name}.py", Path(module_name, "__init__.py")
    near = next((str(each) for each in above if (each / file).is_file() or (each / package).is_file()), None)
    if near is None:
        return f" in {Path.cwd()} or where Python looks (PYTHONPATH=FOLDER adds a folder)"
    return f"; it lies in {near}: start there, or set PYTHONPATH={near}"


def reexported(tree: ast.Module) -> dict[str, str]:
    """Return the import paths of the names that a module re-exports by ``from MODULE import Name as Name``."""
    return {
        alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def _imported_from(tree: ast.Module, name: str, module: str) -> str | None:
    """Return the import path of ``name`` according to the imports of ``module``, whose source is ``tree``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == name or (alias.asname is None and alias.name == name):
                    return alias.name
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{_absolute(node, module)}.{alias.name}"
    return None


def _absolute(node: ast.ImportFrom, module: str) -> str:
    """Return the absolute name of the module in a ``from ... import`` of ``module``."""
    spec = importlib.util.find_spec(module) if node.level else None
    if spec is None:
        return node.module or ""
    return importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)


def _base_path(tree: ast.Module, module: str, classes: Mapping[str, Any], base: ast.expr) -> str | None:
    """Return the import path of a class expression: a class of the same module, an imported one, or
    ``module.Class``.
    """
    match base:
        case ast.Name(id=name):
            return f"{module}.{name}" if name in classes else _imported_from(tree, name, module)
        case ast.Attribute(value=ast.Name(id=holder), attr=name) if path := _imported_from(tree, holder, module):
            return f"{path}.{name}"
    return None


def _literals(node: ast.ClassDef) -> typing.Iterator[tuple[str, Any]]:
    """Yield (name, value) of class attributes with literal values."""
    for name, value in _assignments(node):
        try:
            yield name, ast.literal_eval(value)
        except ValueError:
            continue


def _assignments(node: ast.ClassDef) -> typing.Iterator[tuple[str, ast.expr]]:
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.Assign(
                targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)
            ):  # kind, metric = "...", "..."
                yield from ((each.id, v) for each, v in zip(names, values, strict=False) if isinstance(each, ast.Name))


def _defined(tree: ast.Module) -> set[str]:
    """Return the names of functions and variables at the top level of a module."""
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    targets = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    return functions | {target.id for target in targets if isinstance(target, ast.Name)}


def _aliases(tree: ast.Module) -> dict[str, Any]:
    """Return a module's own names for types: ``Reward = Literal[...]``, ``from metarun.types import Positive as
    Many``.
    """
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in _OF_TYPES and not node.level:
            holder = importlib.import_module(node.module)
            found |= {a.asname: getattr(holder, a.name) for a in node.names if a.asname and hasattr(holder, a.name)}
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _type(node.value, _NAMES)
            if value is not Any:
                found[node.targets[0].id] = value
    return found


def _parameters(
    arguments: ast.arguments, annotated: Callable[[ast.expr | None], Any]
) -> tuple[dict[str, Parameter], bool]:
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [
        *zip(positional, defaults, strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    found = {a.arg: Parameter(annotated(a.annotation), default is None) for a, default in pairs}
    return found, arguments.kwarg is not None


def _type(annotation: ast.expr | None, names: Mapping[str, Any]) -> Any:
    if annotation is None:
        return Any
    try:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):  # "Positive"
            annotation = ast.parse(annotation.value, mode="eval").body
        return eval(ast.unparse(annotation), dict(names))
    except Exception:  # a type of the user's own, checked by its constructor
        return Any


def _hints(function: Any) -> dict[str, Any]:
    """Return the resolved types of a function's parameters, without those that cannot check a value."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name imported for type checkers only
        return {}
    return {name: hint for name, hint in hints.items() if _checks_values(hint)}


def _checks_values(hint: Any) -> bool:
    from pydantic import PydanticUserError

    try:
        types.strictly(hint)
    except (PydanticUserError, TypeError):  # a class of the user's own, checked by its constructor
        return False
    return True


def _inspected(module_name: str, name: str) -> Declaration:
    try:
        thing = getattr(importlib.import_module(module_name), name)
    except AttributeError:
        raise UserError(f"_target_: module '{module_name}' has no '{name}'") from None
    except ImportError as error:
        raise UserError(f"_target_: cannot import '{module_name}': {error}") from None
    result = Declaration(f"{module_name}.{name}", (), inspect.getdoc(thing) or "")
    hints = _hints(thing.__init__ if inspect.isclass(thing) else thing)
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            result.takes_any = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            known = hints.get(parameter.name, Any)
            result.parameters[parameter.name] = Parameter(known, parameter.default is parameter.empty)
    result.attributes |= capabilities(thing)
    if inspect.isclass(thing):
        own, *above = (f"{each.__module__}.{each.__qualname__}" for each in inspect.getmro(thing))
        constructor = (result.parameters, result.takes_any)
        result.lineage = (Ancestor(own, result.attributes, constructor), *map(Ancestor, above))
    return result
