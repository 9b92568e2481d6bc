"""Catalogue of the options: every YAML file of a group, with the declaration of its class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from metarun.config.paths import State, is_users, option_file, options, state_of
from metarun.config.schema import Declaration, attributes, declaration, is_section
from metarun.config.trust import look_in_current_directory, names_other_code
from metarun.errors import UserError, shortened
from metarun.moved import updated
from metarun.untrusted import LARGEST_YAML, parse_yaml, read_bytes

Keys = Callable[[str, Path, Mapping[str, Any]], dict[str, Any]]
"""Function (group, file, content) -> the wanted keys of an option's file."""


@dataclass(frozen=True)
class Entry:
    """One option of a group.

    Attributes:
        group: Name of the group.
        name: Name of the option.
        path: Its file.
        content: The YAML as written.
        section: The component's own keys, including those of the files it builds on (``defaults``).
        merge: Function that merges the wanted keys of its file and of the files it builds on.
    """

    group: str
    name: str
    path: Path
    content: dict[str, Any]
    section: dict[str, Any]
    merge: Callable[[Keys], dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """All keys that it sets, from the top of the configuration: ``{"algorithm": {...}, "runner": {...}}``."""
        return self.merge(_settings)

    @property
    def choices(self) -> dict[str, str]:
        """Options of other groups that it chooses, itself or by the files it builds on: ``{"model": "conv4"}``."""
        return self.merge(_choices)

    @property
    def declaration(self) -> Declaration | None:
        """Declaration of its class; ``None`` for files without a class (recipes)."""
        target = self.section.get("_target_")
        return declaration(str(target)) if target else None

    @cached_property  # used for every pair of options by `metarun list`
    def attributes(self) -> dict[str, Any]:
        """Capabilities of its class, restricted to those of its inner components."""
        return attributes(self.section) if is_section(self.section) else {}

    @property
    def line(self) -> str:
        """One-line description: the file's first comment, or the first line of its class's docstring."""
        for line in self.path.read_text().splitlines():
            if line.startswith("#") and "@package" not in line:
                return line.lstrip("# ")
        return self.declaration.doc.splitlines()[0] if self.declaration and self.declaration.doc else ""


def catalogue(group: str) -> Iterator[Entry]:
    """Yield the options of ``group`` (task, model, algorithm, experiment, ...), the user's first."""
    found = dict(options(group))
    for name, path in found.items():
        yield _entry(group, name, path, found.get)


def entry(group: str, name: str) -> Entry | None:
    """Return the option of ``group`` with this name; ``None`` if there is none. Only its own files are read."""
    find = partial(option_file, group)
    path = find(name)
    return _entry(group, name, path, find) if path else None


def _entry(group: str, name: str, path: Path, find: Callable[[str], Path | None]) -> Entry:
    """Return an option in a file; ``find`` returns the files of others of the group, ``None`` if there is none."""

    def merged(name: str, path: Path, keys: Keys, above: tuple[str, ...] = ()) -> dict[str, Any]:
        content = _load(path)
        if name in above:
            raise UserError(f"{path}: builds on itself (defaults: {' -> '.join((*above, name))})")
        listed = content.get("defaults")
        listed = [*listed] if isinstance(listed, list) else []
        made: dict[str, Any] = {}
        for item in listed if "_self_" in listed else [*listed, "_self_"]:
            if item == "_self_":
                made = _merged(made, keys(group, path, content))
            elif built_on := find(base := _base(group, item, beside=name if above else "")):
                made = _merged(made, merged(base, built_on, keys, (*above, name)))
        return made

    section = merged(name, path, _own)
    if is_users(path) and names_other_code(section):
        look_in_current_directory()
    return Entry(group, name, path, _load(path), section, partial(merged, name, path))


def _own(group: str, path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the component's keys in an option's file: below the group's name if its package is global, else at the
    top.
    """
    inner = content.get(group)
    if isinstance(inner, Mapping) and _PACKAGE_GLOBAL.search(path.read_text()):
        return dict(inner)
    return {key: value for key, value in content.items() if key != "defaults"}


def _settings(group: str, path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return all keys in an option's file, from the top of the configuration."""
    made = {key: value for key, value in content.items() if key != "defaults"}
    package = _PACKAGE.search(path.read_text())
    for name in reversed([] if package and package[1] == "_global_" else (package[1] if package else group).split(".")):
        made = {name: made}
    return made


def _base(group: str, item: Any, beside: str) -> str:
    """Return the option of ``group`` that an entry of ``defaults`` names: ``base`` or ``/group/base``.

    As in Hydra, ``base`` is relative to the group's top, or to ``beside`` in an option that is itself built on.
    """
    entry = str(item).split("@")[0].removeprefix("optional ").removesuffix(".yaml")
    if entry.startswith("/"):
        return entry.removeprefix(f"/{group}/")
    return (PurePosixPath(beside).parent / entry).as_posix()


def _choices(group: str, path: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of other groups that an option's file chooses."""
    listed = content.get("defaults")
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    chosen = [(key.replace("override", "").strip(), str(value)) for item in items for key, value in item.items()]
    return {key.removeprefix("/"): value for key, value in chosen}


_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)\s*$", re.MULTILINE)
_PACKAGE_GLOBAL = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``above`` into ``below``, sections recursively, as Hydra does."""
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}


def examine(group: str, name: str, on_the_way: tuple[str, ...] = ()) -> None:
    """Raise :class:`UserError` if an option's file, or one that it builds on, cannot be read or builds on itself."""
    here = f"{group}/{name}"
    if here in on_the_way:
        raise UserError(f"{' -> '.join([*on_the_way, here])}: an option cannot build on itself")
    path = option_file(group, name)
    if path is None:
        return  # Hydra reports the file that names it
    defaults = _load(path).get("defaults") or []
    if not isinstance(defaults, list):
        raise UserError(f"{path}: defaults is a list of options, not {defaults!r}")
    for item in defaults:
        for where, option in (item if isinstance(item, dict) else {group: item}).items():
            if isinstance(option, str) and option != "_self_" and not where.startswith("override "):
                inner = where.removeprefix("optional ")
                top = inner.removeprefix("/") if inner.startswith("/") or inner == group else f"{group}/{inner}"
                examine(top.partition("@")[0], option.removeprefix(f"/{group}/"), (*on_the_way, here))


def _load(path: Path) -> dict[str, Any]:
    """Return the content of an option's file, which the caller leaves as it is; it is parsed again after a change."""
    return _parsed(path, state_of(path)) if path.is_file() else _parsed.__wrapped__(path, ())


@cache
def _parsed(path: Path, _: State) -> dict[str, Any]:
    try:
        content = parse_yaml(read_bytes(path, LARGEST_YAML, follow=True).decode())
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(explain_yaml(error, path)) from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as YAML: {shortened(error)}") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: the file of an option must have the form key: value")
    return updated(content or {})


def explain_yaml(error: yaml.YAMLError, file: object = "a configuration file") -> str:
    """Return one line for a YAML error: the file, the line and the problem."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    if mark and not mark.name.startswith("<"):
        file = mark.name
    return f"{file}, line {mark.line + 1}: not YAML: {what}" if mark else f"{file}: not YAML: {what}"
