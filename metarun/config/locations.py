"""Keys that hold a path: found by their declared type, stored as absolute paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from metarun.config.schema import declaration, is_section
from metarun.errors import UserError
from metarun.types import IsPath


def path_keys(config: Mapping[str, Any], shipped: bool = False) -> dict[str, bool]:
    """Return the keys whose type is a path; the value says whether they always are, see :class:`IsPath`.

    Args:
        config: The configuration.
        shipped: If true, only metarun's own classes are read. Reading another class's declaration may import its
            module, which a stored configuration must not cause before its code is permitted.
    """
    from metarun.config.check import CLOSED, OPEN

    found = dict(_of_class("runner", CLOSED["runner"]))
    for section in OPEN:
        found |= dict(_of_section(section, config.get(section), shipped))
    return found


def absolute(config: Mapping[str, Any], origin: Path | None = None) -> dict[str, Any]:
    """Return a copy in which every path is absolute.

    A value that may also be a name is changed only if such a path exists. ``~`` is the home directory.

    Args:
        config: The configuration.
        origin: Directory of relative paths; the working directory if omitted.
    """

    def change(value: Any, always: bool) -> Any:
        path = absolute_path(value, origin)
        return path if always or (isinstance(path, str) and Path(path).exists()) else value

    return _with_paths(config, change)


def relative(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in which paths below the working directory are relative to it."""
    here = Path.cwd()

    def change(value: Any, _: bool) -> Any:
        return (
            str(Path(value).relative_to(here)) if isinstance(value, str) and Path(value).is_relative_to(here) else value
        )

    return _with_paths(config, change)


def _with_paths(config: Mapping[str, Any], change: Callable[[Any, bool], Any]) -> dict[str, Any]:
    """Return a copy in which ``change`` has replaced the value of every key of :func:`path_keys`."""
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for key, always in path_keys(config).items():
        node = changed
        *parents, leaf = key.split(".")
        for parent in parents:
            node[parent] = dict(node[parent])
            node = node[parent]
        if leaf in node:
            node[leaf] = change(node[leaf], always)
    return changed


def absolute_path(value: Any, origin: Path | None = None) -> Any:
    """Return a path below ``origin`` (default: the working directory) as absolute, and any other value unchanged.

    A path that contains an interpolation is unchanged.
    """
    if not isinstance(value, str) or not value or "${" in value:
        return value
    try:
        return os.path.normpath(Path(origin or Path.cwd(), Path(value).expanduser()))
    except RuntimeError:  # no such user
        return value


def _of_section(section: str, values: Any, shipped: bool) -> Iterator[tuple[str, bool]]:
    if not is_section(values):
        return
    target = str(values["_target_"])
    if target.startswith("metarun.") or not shipped:
        yield from _of_class(section, target)
    for key, value in values.items():
        yield from _of_section(f"{section}.{key}", value, shipped)


def _of_class(section: str, target: str) -> Iterator[tuple[str, bool]]:
    try:
        parameters = declaration(target).parameters
    except UserError:  # reported by the check of the configuration
        return
    for name, parameter in parameters.items():
        if (mark := _mark(parameter.annotation)) is not None:
            yield f"{section}.{name}", mark.always


def _mark(annotation: Any) -> IsPath | None:
    """Return the mark of a type, or of a member of a union."""
    for part in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)):
        mark = part if isinstance(part, IsPath) else _mark(part)
        if mark is not None:
            return mark
    return None
