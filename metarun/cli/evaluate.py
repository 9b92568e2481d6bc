"""``metarun eval RUN [key=value ...]``: judge a run's learner again, under another protocol if asked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from metarun import strict_json
from metarun.cli.output import print_summary, set_up_logging
from metarun.cli.stored import data_keys, rebuild, recorded, take_code, trained
from metarun.errors import UserError, nearest, require
from metarun.tracking.files import atomic_write
from metarun.tracking.rundir import RunDirectory
from metarun.types import Split

if TYPE_CHECKING:
    from metarun.tasks.base import Task

OPTIONS = {
    "--val": "evaluate on the validation split",
    "--new-classes": "evaluate on the classes of the data that the run does not know",
    "--allow-seen-classes": "evaluate also on classes that the run meta-trained on",
}


def run(words: list[str]) -> int:
    """The command. The result is also written to ``evaluations/<time>.json`` in the run directory."""
    set_up_logging()
    words, trust = take_code(words)
    flags = {word for word in words if word.startswith("-")}
    words = [word for word in words if word not in flags]
    for flag in flags - OPTIONS.keys():
        known = "   ".join(f"{name} ({what})" for name, what in OPTIONS.items())
        raise UserError(f"unknown option '{flag}'{nearest(flag, OPTIONS)}   eval knows {known}")
    split: Split = "val" if "--val" in flags else "test"
    data: dict[str, Any] = {}

    def settle(task: Task, directory: RunDirectory, changes: Mapping[str, Any]) -> None:
        """Evaluate on the run's own classes, or on others that are asked for."""
        from metarun.tasks.same_data import Evaluation, settle_for_evaluation

        places = data_keys(directory.config())
        asked = Evaluation(
            split,
            keys=[key for key in changes if key.startswith("task.") and key not in places],
            moved=any(key in places for key in changes),
            allow_seen_classes="--allow-seen-classes" in flags,
            new_classes="--new-classes" in flags,
        )
        data.update(settle_for_evaluation(task, recorded(directory), asked))

    directory, experiment, changes = rebuild("eval", words, ("task.", "algorithm.", "runner."), trust, settle)
    require(experiment.runner.test_episodes > 0 or split == "val", "runner.test_episodes=0: nothing to judge on")
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
    status = print_summary({**summary, "directory": str(path)})
    if seen := data.get("seen_classes"):
        from metarun.tasks.same_data import named

        print(f"NOT HELD OUT   meta-trained on too: {named(seen)} (--allow-seen-classes)")
    return status
