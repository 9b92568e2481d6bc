"""The results of a run's tests as plain values, with the protocol that they were found by."""

from __future__ import annotations

from typing import Any

from metarun.algorithms.base import Algorithm
from metarun.evaluation.evaluator import Result, calibration, final, robust
from metarun.tasks.base import Task
from metarun.training.settings import Runner
from metarun.types import Split


def learner_protocol(algorithm: Algorithm) -> dict[str, Any]:
    """Return the part of the protocol that the learner determines, including its pretrained encoder if any."""
    pretrained = getattr(getattr(algorithm, "model", None), "protocol", dict)
    return {**pretrained(), **algorithm.protocol()}


def protocol(task: Task, algorithm: Algorithm, runner: Runner) -> dict[str, Any]:
    """Return the facts that are needed to compare the results with others."""
    return {
        **task.protocol(),
        **learner_protocol(algorithm),
        **({} if algorithm.precision == "float32" else {"precision": algorithm.precision}),
        "test_episodes": runner.test_episodes,
        "selection": f"{runner.select} on {runner.val_episodes} validation episodes"
        if runner.selects_best
        else "last iteration",
        **({} if runner.patience is None else {"early_stopping": f"patience {runner.patience}"}),
    }


def findings(
    task: Task, algorithm: Algorithm, runner: Runner, split: Split, results: dict[str, Result]
) -> dict[str, Any]:
    """Return the results of a test as plain values: estimates, references, the protocol and the adaptation curve.

    Args:
        task: The task family.
        algorithm: The learner.
        runner: Settings of the run.
        split: The split that the test was on.
        results: A result for each episode shape, as :meth:`metarun.training.experiment.Experiment.test` returns them.
    """
    facts = protocol(task, algorithm, runner)
    if not results:
        return {"test": {}, "references": {}, "protocol": facts, "adaptation": []}
    return {
        "test": {name: estimate.as_dict() for name, estimate in final(results).items()},
        "references": task.references(split, range(runner.episodes(split))),
        **robust(task, results),
        **calibration(results),
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "protocol": facts,
        "protocol_of_learner": list(learner_protocol(algorithm)),
        "adaptation": results[""].adaptation(task.metric),
    }
