"""The record of a run's data, stored as data.json. Resuming and evaluating compare it with the data found then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from metarun.types import SPLITS, Split


@dataclass(frozen=True)
class DataRecord:
    """The classes of each split and hashes of their content.

    Attributes:
        classes: Names of each split's classes, in the order in which episodes number them; empty for families without
            classes.
        content: Hash of the examples of each class, in their order. It depends neither on paths nor on file names.
        places: Absolute paths that the data were read from.
        rule: Keys that decide which tasks belong to a split, in families that draw tasks by a rule.
    """

    classes: dict[Split, list[str]] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    rule: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Names of all classes in any split."""
        return {name for names in self.classes.values() for name in names}

    @property
    def fingerprint(self) -> str | None:
        """One hash of the content of all classes in any split; ``None`` if content is not compared."""
        content = sorted((name, digest) for name, digest in self.content.items() if name in self.names)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32] if content else None

    def as_dict(self) -> dict[str, Any]:
        """Return the content of data.json."""
        facts = {"fingerprint": self.fingerprint, "places": self.places, "rule": self.rule}
        return {"format": 1, **facts, "classes": self.classes, "content": self.content}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> DataRecord:
        """Rebuild a record from :meth:`as_dict`; raises ``ValueError`` if ``stored`` has another form."""
        if not isinstance(stored, Mapping):
            raise ValueError("not a record of a run's data")
        classes, content = stored.get("classes"), stored.get("content")
        places, rule = stored.get("places"), stored.get("rule")
        valid = (
            isinstance(classes, dict)
            and set(classes) <= set(SPLITS)
            and all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in classes.values())
            and isinstance(content, dict)
            and isinstance(places, list)
            and isinstance(rule, dict)
        )
        if not valid:
            raise ValueError("not a record of a run's data")
        return cls(classes, content, places, rule)  # type: ignore[arg-type]

    def changed(self, other: DataRecord) -> list[str]:
        """Return the names of classes that both records have but whose content differs."""
        both = self.content.keys() & other.content.keys() & self.names
        return sorted(name for name in both if self.content[name] != other.content[name])

    def trained_on(self, names: Iterable[str], content: Mapping[str, str]) -> list[str]:
        """Return the classes among ``names`` that the run meta-trained on, recognised by name or by content.

        Args:
            names: Names of the classes.
            content: Hashes of these classes' examples, by name.
        """
        trained = set(self.classes.get("train", ()))
        seen = {self.content[name] for name in trained if name in self.content}
        return [name for name in names if name in trained or content.get(name) in seen]
