"""What there is to choose from: every YAML of a group, with what its class declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import yaml

from metarun.config.declare import Declaration, attributes, declaration, is_section
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
    section: dict[str, Any]
    """The component's own keys, those of the files it builds on (``defaults``) included."""

    @property
    def declaration(self) -> Declaration | None:
        """What its class declares; ``None`` for files without a class (recipes)."""
        target = self.section.get("_target_")
        return declaration(str(target)) if target else None

    @cached_property  # asked for every pair of options when they are listed
    def attributes(self) -> dict[str, Any]:
        """The capabilities of its class, within those of the classes it is put together from."""
        return attributes(self.section) if is_section(self.section) else {}

    @property
    def line(self) -> str:
        """The first line of what it says of itself: the file's first comment, or its class's docstring."""
        for line in self.path.read_text().splitlines():
            if line.startswith("#") and "@package" not in line:
                return line.lstrip("# ")
        return self.declaration.doc.splitlines()[0] if self.declaration and self.declaration.doc else ""


def catalogue(group: str) -> Iterator[Entry]:
    """The options of ``group`` (task, model, algorithm, experiment, ...), the user's first."""
    found = {name: (path, _load(path)) for name, path in options(group)}

    def section(name: str) -> dict[str, Any]:
        content = found[name][1]
        inner = content.get(group)
        own = inner if isinstance(inner, dict) else content
        built_on = [d.removeprefix(f"/{group}/") for d in content.get("defaults") or [] if isinstance(d, str)]
        parents = [d for d in built_on if d in found and d != name]
        return reduce(_merged, [*map(section, parents), own], {})

    for name, (path, content) in found.items():
        yield Entry(group, name, path, content, section(name))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with the keys of ``above``, sections inside merged alike: what Hydra makes of the two."""
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}
