"""Locations of configuration files: the package's own conf/ and the user's directories before it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from metarun.errors import RunFailed, UserError, nearest_path
from metarun.untrusted import read_yaml

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_directory() -> Path:
    """Return the shipped configuration: inside the installed package, or at the top of a checkout."""
    # The checkout comes first, because an editable install can leave a stale copy inside the package.
    for candidate in (_PACKAGE.parent / "conf", _PACKAGE / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise RunFailed(f"metarun's configuration is missing: no conf/config.yaml beside or in {_PACKAGE}")


def records_directory() -> Path:
    """Return the shipped records of reproductions: at the top of a checkout, or inside the installed package."""
    checkout = _PACKAGE.parent / "outputs" / "reproduced"
    return checkout if checkout.is_dir() else _PACKAGE / "reproduced"


_config_dir: str | None = None


def use_config_dir(name: str | None) -> None:
    """Use ``name`` as ``--config-dir`` from now on; raises :class:`UserError` if it is not a directory."""
    global _config_dir
    _config_dir = name
    user_directories()


@contextmanager
def config_dir_in_use(name: str | Path | None) -> Iterator[None]:
    """Use ``name`` as the user's configuration directory within the block; ``None``: only METARUN_CONF."""
    global _config_dir
    before = _config_dir
    use_config_dir(None if name is None else str(name))
    try:
        yield
    finally:
        _config_dir = before


def user_directories() -> list[Path]:
    """Return ``--config-dir`` and METARUN_CONF in order of precedence. Both add options and shadow shipped ones."""
    found = []
    for origin, name in (("--config-dir", _config_dir), ("METARUN_CONF", os.environ.get("METARUN_CONF"))):
        if name:
            if not Path(name).is_dir():
                raise UserError(f"{origin}: no directory at {name}{nearest_path(name)}")
            found.append(Path(name).resolve())
    return found


def is_users(path: Path) -> bool:
    """Return whether an option's file lies in one of the user's directories."""
    return any(path.is_relative_to(directory) for directory in user_directories())


def user_options() -> Iterator[dict[str, Any]]:
    """Yield the content of every option file in the user's directories."""
    for directory in user_directories():
        for path in sorted(directory.rglob("*.yaml")):
            content = read_yaml(path, follow=True)
            if isinstance(content, dict):
                yield content


State = tuple[tuple[str, int, int], ...]
"""Path, time of the last change in nanoseconds and size in bytes of each of some files."""


def state_of(*paths: Path) -> State:
    """Return what changes when one of these files is written, for results that are remembered while it is the same."""
    found = ((path, path.stat()) for path in paths)
    return tuple((str(path), status.st_mtime_ns, status.st_size) for path, status in found)


def users_state() -> State:
    """Return the state of every option file in the user's directories."""
    files = (path for directory in user_directories() for path in sorted(directory.rglob("*.yaml")))
    return state_of(*(path for path in files if path.is_file()))  # a link may lead nowhere


def options(group: str) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of every option of ``group``; a user's file shadows a shipped one of the same name."""
    seen = set()
    for directory in [*user_directories(), conf_directory()]:
        top = directory / group
        for path in sorted(top.rglob("*.yaml")):
            name = path.relative_to(top).with_suffix("").as_posix()
            if name not in seen and path.is_file():
                seen.add(name)
                yield name, path


def option_file(group: str, name: str) -> Path | None:
    """Return the file of one option, the user's before the shipped one; None if there is no such option."""
    plain = PurePosixPath(name)
    if plain.as_posix() != name or plain.is_absolute() or ".." in plain.parts:
        return None
    files = (directory / group / f"{name}.yaml" for directory in [*user_directories(), conf_directory()])
    return next((path for path in files if os.path.isfile(path)), None)  # False for names that no file can have


def misplaced(group: str, name: str) -> str:
    """Return a hint for an option that does not exist, if the user has a file of its name that is not read."""
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*", name):
        return ""
    for directory in user_directories():
        for path in sorted(directory.rglob(f"{name.rpartition('/')[2]}.yaml")):
            return f"; {path} lies elsewhere: options of {group} are read from {directory / group}"
    for path in sorted([*Path().glob(f"*/{group}/{name}.yaml"), *Path().glob(f"{group}/{name}.yaml")]):
        return f"; {path} is there, but not read without --config-dir {_folder_of(path, group, name)}"
    return ""


def _folder_of(path: Path, group: str, name: str) -> Path:
    return path.parents[len(Path(group, name).parts) - 1]


def is_group(key: str) -> bool:
    """Return whether a command-line key chooses an option of a group: ``task``, not ``task.shot``."""
    return "." not in key and any((directory / key).is_dir() for directory in [*user_directories(), conf_directory()])
