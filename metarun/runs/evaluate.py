"""Evaluation of a run's learner, also under another protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from metarun import strict_json
from metarun.config.trust import Trust
from metarun.errors import require
from metarun.runs.other_task import like_the_runs
from metarun.runs.stored import data_keys, rebuild, recorded, trained
from metarun.tracking.files import atomic_write
from metarun.tracking.rundir import RunDirectory
from metarun.types import Split

if TYPE_CHECKING:
    from metarun.tasks.base import Task


def evaluate_run(
    words: Sequence[str],
    trust: Trust,
    *,
    split: Split = "test",
    new_classes: bool = False,
    allow_seen_classes: bool = False,
    objects: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate the learner that a run tests and write the result to ``evaluations/<time>.json`` in its directory.

    Args:
        words: The run directory, then overrides of ``task.``, ``algorithm.`` or ``runner.`` keys. ``task=NAME``
            evaluates on another task family, with the run's episode sizes.
        trust: Which code beside metarun's own the stored configuration may call.
        split: The split whose tasks are evaluated.
        new_classes: Evaluate on the classes of the data that the run does not know.
        allow_seen_classes: Evaluate also on classes that the run meta-trained on.
        objects: Components that exist already, by section.

    Returns:
        The result as in the summary of a run, with ``split``, ``changes``, ``data`` and the file's path as
        ``directory``.

    Raises:
        UserError: The run cannot be rebuilt, or its data are not those it was made of.
    """
    data: dict[str, Any] = {}

    def settle(task: Task, directory: RunDirectory, changes: Mapping[str, Any]) -> None:
        """Evaluate on the run's own classes, or on others that are asked for."""
        from metarun.tasks.same_data import Evaluation, settle_for_evaluation

        places = data_keys(directory.config())
        other, kept = changes.get("task"), recorded(directory)
        if other is not None:
            like_the_runs(task, kept)
        asked = Evaluation(
            split,
            other_task=other,
            keys=[key for key in changes if key.startswith("task.") and key not in places],
            moved=any(key in places for key in changes),
            allow_seen_classes=allow_seen_classes,
            new_classes=new_classes,
        )
        data.update(settle_for_evaluation(task, kept, asked))

    allowed = ("task.", "algorithm.", "runner.")
    directory, experiment, changes = rebuild("eval", words, allowed, trust, settle, objects, other_task=True)
    require(
        experiment.runner.test_episodes > 0 or split == "val",
        "runner.test_episodes=0: there are no tasks to evaluate on",
    )
    chosen, iteration = trained(directory, experiment)
    results = experiment.test(split)
    summary = {
        "iterations": iteration,
        "checkpoint": chosen.name,
        "split": split,
        "changes": changes,
        "data": {**data, "fingerprint": experiment.task.record().fingerprint},
        **experiment.findings(split, results),
    }
    folder = directory.path / "evaluations"
    folder.mkdir(exist_ok=True)
    path = folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}.json"
    atomic_write(path, strict_json.dumps(summary, indent=1).encode())
    return {**summary, "directory": str(path)}
