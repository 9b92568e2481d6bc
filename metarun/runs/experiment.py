"""An experiment that Python code describes: composed, checked, not yet built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from metarun.algorithms.base import Algorithm
from metarun.config.catalogue import catalogue
from metarun.config.schema import capabilities
from metarun.config.trust import Trust, named_code
from metarun.errors import require
from metarun.runs.launch import carry_out
from metarun.runs.run import Run, keyboard_interrupts, torch_settings
from metarun.tasks.base import Task
from metarun.tracking.console import shown

BASES = {"task": Task, "model": nn.Module, "algorithm": Algorithm}
"""Required base class of a class or an object given for a section."""


@dataclass(frozen=True)
class Experiment:
    """A composed and checked experiment."""

    config: dict[str, Any]
    """The resolved configuration, as the run stores it."""
    facts: Mapping[str, Any] = field(repr=False)
    """Further entries of the run's meta.json."""
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The sections whose components are Python objects."""
    display: bool = False
    """True if progress and messages are shown on stderr."""

    def run(self) -> Run:
        """Meta-train, evaluate on held-out tasks, and write the run directory, as the command line does.

        Returns:
            The finished run.

        Raises:
            UserError: The parts do not fit together or the data are missing.
            RunFailed: Training diverged, memory ran out, or a file could not be written.
            KeyboardInterrupt: Ctrl-C, after a checkpoint; :meth:`Run.resume` continues from there.
        """
        with shown(self.display), torch_settings(), keyboard_interrupts():
            summary = carry_out(self.config, self.facts, objects=self.objects)
        names = frozenset(str(name) for _, name in named_code(self.config))
        return Run(Path(summary["directory"]), Trust(names=names, expressions=True), self.objects)


def sections_of(given: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The sections of components that are classes or objects, and the objects."""
    objects = {section: value for section, value in given.items() if not inspect.isclass(value)}
    for section, value in given.items():
        kind = value if inspect.isclass(value) else type(value)
        base = BASES[section]
        name = f"{base.__module__.partition('.')[0]}.{base.__name__}"
        require(issubclass(kind, base), f"{section}={value!r:.80}: give a name, or a class or an object of {name}")
        local = inspect.isclass(value) and "<locals>" in kind.__qualname__
        require(not local, f"{section}={kind.__qualname__}: define the class at the top of its module")
    if "algorithm" in objects:
        require("model" not in given, "an algorithm that is an object holds its model already: leave out model")
        objects["model"] = objects["algorithm"].model
    kinds = {
        section: value if inspect.isclass(value) else type(value) for section, value in {**given, **objects}.items()
    }
    return {key: {"_target_": f"{kind.__module__}.{kind.__qualname__}"} for key, kind in kinds.items()}, objects


def default_words(task: Any, words: Sequence[str], sections: Mapping[str, Any]) -> list[str]:
    """The model and the algorithm to use with a task that is no option, where none are asked for."""
    if task is None:
        return []
    wanted = capabilities(task)
    for family in catalogue("task"):
        if all(wanted.get(key) == family.attributes.get(key) for key in ("kind", "modality")):
            options = {group: family.choices.get(group) for group in ("model", "algorithm") if group not in sections}
            asked = {each.partition("=")[0] for each in words}
            return [f"{group}={option}" for group, option in options.items() if option and group not in asked]
    return []
