"""The record of a run's data, kept as data.json: by it, what is evaluated or resumed later is known to be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from metarun.types import SPLITS, Split


@dataclass(frozen=True)
class DataRecord:
    """Which classes each split has, and what their content is.

    ``classes[split]`` are names, in the order in which episodes number them; empty for families without classes.
    ``content`` is a hash of the examples of each class, in their order, where they are files of the user's: neither
    paths nor names, sizes or decoded pixels play a part in it. ``places`` are the absolute paths that were read.
    ``rule`` holds keys on which it depends which tasks belong to a split, in families that draw them by a rule.
    """

    classes: dict[Split, list[str]] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    rule: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """All classes."""
        return {name for names in self.classes.values() for name in names}

    @property
    def fingerprint(self) -> str | None:
        """One hash of the content of all classes in any split; ``None`` where content is not compared."""
        content = sorted((name, digest) for name, digest in self.content.items() if name in self.names)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32] if content else None

    def as_dict(self) -> dict[str, Any]:
        """data.json."""
        facts = {"fingerprint": self.fingerprint, "places": self.places, "rule": self.rule}
        return {"format": 1, **facts, "classes": self.classes, "content": self.content}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> DataRecord:
        """The inverse of :meth:`as_dict`; raises ``ValueError`` for what is no such record."""
        if not isinstance(stored, Mapping):
            raise ValueError("not a record of a run's data")
        classes, content = stored.get("classes"), stored.get("content")
        places, rule = stored.get("places"), stored.get("rule")
        right = (
            isinstance(classes, dict)
            and set(classes) <= set(SPLITS)
            and all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in classes.values())
            and isinstance(content, dict)
            and isinstance(places, list)
            and isinstance(rule, dict)
        )
        if not right:
            raise ValueError("not a record of a run's data")
        return cls(classes, content, places, rule)  # type: ignore[arg-type]

    def changed(self, other: DataRecord) -> list[str]:
        """Classes of both whose content differs."""
        both = self.content.keys() & other.content.keys() & self.names
        return sorted(name for name in both if self.content[name] != other.content[name])

    def trained_on(self, names: Iterable[str], content: Mapping[str, str]) -> list[str]:
        """Those of the classes ``names`` that this run meta-trained on, by their names or by the same examples.

        ``content`` has the hashes of these classes. ``metarun adapt`` and evaluation ask.
        """
        trained = set(self.classes.get("train", ()))
        seen = {self.content[name] for name in trained if name in self.content}
        return [name for name in names if name in trained or content.get(name) in seen]
