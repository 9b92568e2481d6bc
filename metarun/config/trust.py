"""Which code a stored configuration may call: metarun's own components, and what the user named in this command.

A run directory and an adapted learner are data, whoever made them. What they name is judged from the source of
metarun's own modules, before anything is imported.
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
from metarun.config.paths import take_config_dir, user_options
from metarun.config.schema import declaration, is_section, source
from metarun.errors import UserError
from metarun.types import ImportPath

PACKAGES = ("algorithms", "evaluation", "models", "tasks")
"""Where metarun's components lie: classes that an option can name."""
BASES = {"task": "metarun.tasks.base.Task", "algorithm": "metarun.algorithms.base.Algorithm"}
OPTION = "--trust"


@dataclass(frozen=True)
class Trust:
    """What the user said about code that is not metarun's, in this command alone: it is never stored.

    ``everything``: all that a stored configuration names. ``names``: import paths of classes and of modules, whose
    classes are all meant.
    """

    everything: bool = False
    names: frozenset[str] = frozenset()
    expressions: bool = False
    """Whether expressions are resolved, which read environment variables; they are where ``everything`` is true."""

    @classmethod
    def of(cls, given: bool | str | Collection[str], expressions: bool = False) -> Trust:
        """From ``True`` or ``False``, or import paths."""
        if isinstance(given, bool):
            return cls(given, expressions=expressions)
        return cls(False, frozenset([given] if isinstance(given, str) else given), expressions)

    def admits(self, name: str) -> bool:
        """Whether code at the import path ``name`` may be called."""
        return self.everything or name in self.names or _is_class_of(self.names, name)


def take_code(words: Sequence[str]) -> tuple[list[str], Trust]:
    """The words without ``--config-dir DIR`` and ``--trust``, and which code beside metarun's own these admit."""
    return take_trust(take_config_dir(words))


def take_trust(words: Sequence[str]) -> tuple[list[str], Trust]:
    """The words without ``--trust`` and ``--trust=MODULE,...``, and what these and ``--config-dir`` say."""
    rest = [word for word in words if word.partition("=")[0] != OPTION]
    given = [word.partition("=")[2] for word in words if word.partition("=")[0] == OPTION]
    names = {name.strip() for value in given for name in value.split(",") if name.strip()}
    named = [name for content in user_options() for _, name in named_code(content) if isinstance(name, str)]
    names |= {*named, *(name.rpartition(".")[0] for name in named if not is_component(name))} - {""}
    return rest, Trust("" in given, frozenset(names))


def admit(config: Mapping[str, Any], where: str, trust: Trust, own: Collection[str] = ()) -> None:
    """Raise :class:`UserError` for code that a stored ``config`` may not call; ``where`` names it in the message.

    ``own`` are keys whose values the user typed in this command. What is admitted beside metarun's own is then also
    looked for in the current directory.
    """

    def typed(key: str) -> bool:
        return any(key == each or key.startswith((f"{each}.", f"{each}[")) for each in own)

    for key, text in expressions(config):
        if not (trust.everything or trust.expressions or typed(key)):
            raise UserError(
                f"{where}: {key} is {text!r:.120}, and what is stored does not read your environment   if it is "
                f"yours: {OPTION}"
            )
    others = False
    for key, name in named_code(config):
        if is_component(name):
            continue
        if not typed(key) and not (isinstance(name, str) and trust.admits(name)):
            raise UserError(
                f"{where}: {key} names {name!r:.120}, which is no component of metarun; what is stored is data and "
                f"runs no other code   if it is yours: {OPTION}, {OPTION}=MODULE, or --config-dir with an option that "
                "names it"
            )
        others = True
    for section, base in BASES.items():
        target = config[section].get("_target_") if isinstance(config.get(section), Mapping) else None
        if is_component(target) and base not in declaration(str(target)).ancestors:
            raise UserError(f"{where}: {section}._target_={target}: that is no {base}")
    if others:
        look_in_current_directory()


def named_code(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, import path) of everything in a configuration that names code: ``_target_``, and arguments that do."""
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
    """Whether ``target`` is the import path of a class that one of metarun's own component modules defines.

    Its source is read, and nothing imported: neither what such a module imports nor what it could be made to hold
    counts.
    """
    if not isinstance(target, str):
        return False
    found = re.fullmatch(r"metarun\.([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)\.([A-Z][A-Za-z0-9]*)", target, re.ASCII)
    return found is not None and found[2] in _classes(found[1])


@cache
def _classes(module: str) -> frozenset[str]:
    """The classes that the component module ``module`` (its path below the package) defines."""
    import metarun

    parts = module.split(".")
    file = Path(next(iter(metarun.__path__)), *parts).with_suffix(".py")
    if parts[0] not in PACKAGES or not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.ClassDef))


def _is_class_of(modules: Collection[str], name: str) -> bool:
    """Whether ``name`` is a class that one of the modules defines itself, not one of what these import."""
    module, _, last = name.rpartition(".")
    if module not in modules:
        return False
    look_in_current_directory()
    tree = source(module)
    return tree is not None and any(isinstance(node, ast.ClassDef) and node.name == last for node in tree.body)


def _is_code(annotation: Any) -> bool:
    return ImportPath in (annotation, *get_args(annotation))


def names_other_code(config: Mapping[str, Any]) -> bool:
    """Whether a configuration calls code that is not metarun's."""
    return any(not is_component(name) for _, name in named_code(config))


def look_in_current_directory() -> None:
    """Let a user's own modules be found in the current directory, after everything that is installed.

    Not in a run directory: what lies there is data.
    """
    here = Path.cwd()
    marks = ("config.yaml", "meta.json")
    in_run = any(all((folder / mark).exists() for mark in marks) for folder in (here, *here.parents))
    if str(here) not in sys.path and not in_run:
        sys.path.append(str(here))
