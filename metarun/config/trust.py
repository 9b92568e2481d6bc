"""The code that a stored configuration may call: metarun's own components, and what the user named in this command.

Run directories and adapted learners count as data, no matter who made them. Whether a name is metarun's is decided from
the source of its modules, before anything is imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from metarun.config.environment import expressions
from metarun.config.paths import user_options
from metarun.config.schema import declaration, is_section, reexported, source
from metarun.errors import UserError
from metarun.types import ImportPath

PACKAGES = ("algorithms", "evaluation", "models", "tasks")
"""Packages with metarun's components, the classes that an option can name."""
BASES = {"task": "metarun.tasks.base.Task", "algorithm": "metarun.algorithms.base.Algorithm"}
OPTION = "--trust"


@dataclass(frozen=True)
class Trust:
    """The user's permissions for code that is not metarun's. They hold for one command and are never stored.

    Attributes:
        everything: True if all code that a stored configuration names may be called.
        names: Import paths of permitted classes, and of modules whose own classes are all permitted.
        expressions: True if expressions, which may read environment variables, are resolved. ``everything`` implies it.
    """

    everything: bool = False
    names: frozenset[str] = frozenset()
    expressions: bool = False

    @classmethod
    def of(cls, given: bool | str | Collection[str] | Trust, expressions: bool = False) -> Trust:
        """Build permissions from ``True``, ``False`` or import paths. Permissions are returned as they are."""
        if isinstance(given, Trust):
            return given
        if isinstance(given, bool):
            return cls(given, expressions=expressions)
        return cls(False, frozenset([given] if isinstance(given, str) else given), expressions)

    @classmethod
    def named(cls, values: Sequence[str]) -> Trust:
        """Build the permissions of the values of ``--trust`` (empty: everything) and of the options in the user's
        directories.
        """
        names = {name.strip() for value in values for name in value.split(",") if name.strip()}
        named = [name for content in user_options() for _, name in named_code(content) if isinstance(name, str)]
        names |= {*named, *(name.rpartition(".")[0] for name in named if not is_component(name))} - {""}
        return cls("" in values, frozenset(names))

    def admits(self, name: str) -> bool:
        """Return whether code at the import path ``name`` may be called."""
        return self.everything or name in self.names or _is_class_of(self.names, name)


def admit(config: Mapping[str, Any], where: str, trust: Trust, own: Collection[str] = ()) -> None:
    """Raise :class:`UserError` if a stored configuration names code that it may not call.

    If it names permitted code of the user's, the current directory is added to the import path.

    Args:
        config: The stored configuration.
        where: Name of the configuration in the message.
        trust: Permissions of this command.
        own: Keys whose values the user typed in this command.
    """

    def typed(key: str) -> bool:
        return any(key == each or key.startswith((f"{each}.", f"{each}[")) for each in own)

    for key, text in expressions(config):
        if not (trust.everything or trust.expressions or typed(key)):
            raise UserError(
                f"{where}: {key} is {text!r:.120}, and stored configurations may not read your environment   if you "
                f"wrote it: {OPTION}"
            )
    others = False
    for key, name in named_code(config):
        if is_component(name):
            continue
        if not typed(key) and not (isinstance(name, str) and trust.admits(name)):
            raise UserError(
                f"{where}: {key} names {name!r:.120}, which is not a component of metarun; stored configurations may "
                f"not call other code   if it is yours: {OPTION}, {OPTION}=MODULE, or --config-dir with an option that "
                "names it"
            )
        others = True
    for section, base in BASES.items():
        target = config[section].get("_target_") if isinstance(config.get(section), Mapping) else None
        if is_component(target) and base not in declaration(str(target)).ancestors:
            raise UserError(f"{where}: {section}._target_={target}: not a subclass of {base}")
    if others:
        look_in_current_directory()


def named_code(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, import path) of everything in a configuration that names code: ``_target_`` and some arguments."""
    prefix = f"{key}." if key else ""
    if isinstance(value, Mapping):
        if is_section(value):
            yield f"{prefix}_target_", value["_target_"]
        if is_section(value) and is_component(value["_target_"]):
            for name, parameter in declaration(value["_target_"]).parameters.items():
                if _is_code(parameter.annotation) and value.get(name) is not None:
                    yield f"{prefix}{name}", value[name]
        for name, inner in value.items():
            yield from named_code(inner, f"{prefix}{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from named_code(inner, f"{key}[{i}]")


def is_component(target: Any) -> bool:
    """Return whether ``target`` is the import path of a class that one of metarun's component modules offers.

    It defines the class, or re-exports another component module's by ``from MODULE import Name as Name``. Other names
    that it imports do not count. The source is read and nothing is imported.
    """
    if not isinstance(target, str):
        return False
    found = re.fullmatch(r"metarun\.([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)\.([A-Z][A-Za-z0-9]*)", target, re.ASCII)
    return found is not None and found[2] in _classes(found[1])


@cache
def _classes(module: str) -> frozenset[str]:
    """Return the classes that a component module defines or re-exports; ``module`` is its path below the package."""
    import metarun

    parts = module.split(".")
    file = Path(next(iter(metarun.__path__)), *parts).with_suffix(".py")
    if parts[0] not in PACKAGES or not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    return frozenset(defined | {name for name, path in reexported(tree).items() if is_component(path)})


def _is_class_of(modules: Collection[str], name: str) -> bool:
    """Return whether ``name`` is a class that one of the modules defines itself, rather than imports."""
    module, _, last = name.rpartition(".")
    if module not in modules:
        return False
    look_in_current_directory()
    tree = source(module)
    return tree is not None and any(isinstance(node, ast.ClassDef) and node.name == last for node in tree.body)


def _is_code(annotation: Any) -> bool:
    return ImportPath in (annotation, *get_args(annotation))


def names_other_code(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration calls code that is not metarun's."""
    return any(not is_component(name) for _, name in named_code(config))


def look_in_current_directory() -> None:
    """Append the current directory to the import path, unless it is in a run directory, whose content is data."""
    here = Path.cwd()
    marks = ("config.yaml", "meta.json")
    in_run = any(all((folder / mark).exists() for mark in marks) for folder in (here, *here.parents))
    if str(here) not in sys.path and not in_run:
        sys.path.append(str(here))
