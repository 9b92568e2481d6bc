"""What there is to choose from: every YAML of a group, with what its class declares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metarun.config.declare import Declaration, declaration
from metarun.config.paths import options
from metarun.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One option of a group."""

    group: str
    name: str
    path: Path
    content: dict[str, Any]
    """The YAML as it stands."""

    @property
    def section(self) -> dict[str, Any]:
        """The component's own keys: the whole file, or its part under the group's name."""
        inner = self.content.get(self.group)
        return inner if isinstance(inner, dict) else self.content

    @property
    def declaration(self) -> Declaration | None:
        """What its class declares; ``None`` for files without a class (recipes)."""
        target = self.section.get("_target_")
        return declaration(str(target)) if target else None

    @property
    def attributes(self) -> dict[str, Any]:
        """The capabilities of its class."""
        return self.declaration.attributes if self.declaration else {}

    @property
    def line(self) -> str:
        """The first line of what it says of itself: its class's docstring, or the file's first comment."""
        if self.declaration and self.declaration.doc:
            return self.declaration.doc.splitlines()[0]
        for line in self.path.read_text().splitlines():
            if line.startswith("#") and "@package" not in line:
                return line.lstrip("# ")
        return ""


def catalogue(group: str) -> Iterator[Entry]:
    """The options of ``group`` (task, model, algorithm, experiment, ...), the user's from METARUN_CONF first."""
    directories = [Path(d) for d in (os.environ.get("METARUN_CONF"),) if d]
    for name, path in options(group, directories):
        try:
            content = _load(path.read_text())
        except yaml.YAMLError as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}") from None
        yield Entry(group, name, path, content or {})


def _load(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
