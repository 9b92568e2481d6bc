"""Evaluation of a run on another task family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metarun.config.compose import compose
from metarun.config.overrides import read_single
from metarun.config.schema import attributes, is_section
from metarun.errors import require

if TYPE_CHECKING:
    from metarun.tasks.base import Task
    from metarun.tasks.record import DataRecord

KEPT = ("way", "shot", "query", "unknown", "episodes", "test_ways", "test_shots")
"""Keys of an episode's size. The other family takes the run's values of those that it has."""


def with_other_task(
    config: dict[str, Any], choices: Mapping[str, Any], words: Sequence[str]
) -> tuple[dict[str, Any], str | None, list[str]]:
    """Give a stored configuration the task family that a word ``task=NAME`` names.

    Args:
        config: The run's configuration.
        choices: The options that the run chose.
        words: Overrides.

    Returns:
        The configuration, the name of the family (``None`` if it is the run's own), and the other words.

    Raises:
        UserError: There is no such family, or it is of another kind or has other inputs.
    """
    named = [override for override in read_single(words) if override.key == "task"]
    if not named:
        return config, None, [*words]
    rest = [word for word in words if word not in {override.word for override in named}]
    name = str(named[-1].value)
    if name == choices.get("task"):
        return config, None, rest
    section, own = compose([named[-1].word]).config["task"], config.get("task") or {}
    there, here = (attributes(each) if is_section(each) else {} for each in (own, section))
    for fact in ("kind", "modality"):
        require(
            there.get(fact) == here.get(fact),
            f"task={name}: this family's {fact} is {here.get(fact)}, and the run's is {there.get(fact)}",
        )
    kept = {key: own[key] for key in KEPT if key in section and key in own}
    return {**config, "task": {**section, **kept}}, name, rest


def like_the_runs(task: Task, kept: DataRecord | None) -> None:
    """Let a learner be rebuilt that classifies among the run's meta-train classes, whatever the other family has."""
    if kept is not None and task.spec.train_classes and "train" in kept.classes:
        task.spec = replace(task.spec, train_classes=len(kept.classes["train"]))
