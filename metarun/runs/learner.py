"""The learner of a run: its meta-trained parameters, ready to be adapted to the user's own task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarun.adapted import sources
from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.stored import rebuilt
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import build
from metarun.config.check import check
from metarun.config.environment import resolved
from metarun.engine import precision
from metarun.errors import UserError, require
from metarun.runs.stored import tested_checkpoint, trained
from metarun.tasks.inputs import READABLE, Inputs
from metarun.tracking.rundir import RunDirectory
from metarun.training import checkpoint
from metarun.training.device import choose_device
from metarun.training.settings import Runner

log = logging.getLogger("metarun")


@dataclass(frozen=True)
class TrainedLearner:
    """A meta-trained learner. It reads images, texts or rows of numbers, as its run's tasks do."""

    algorithm: SupervisedAlgorithm
    """The algorithm with its meta-parameters, a torch module."""
    inputs: Inputs
    """Conversion of inputs to tensors."""
    iteration: int
    """The iteration of the checkpoint that it comes from."""
    seed: int
    """The seed of the run, for adaptations that draw random numbers."""

    def adapt(
        self, support: Any, targets: Sequence[Any] | None = None, *, steps: int | None = None, seed: int | None = None
    ) -> AdaptedLearner:
        """Adapt to one task.

        Args:
            support: The examples of the task, in one of three forms. A path: a folder of one folder of images a class,
                or a CSV file of ``text,label`` or of numbers. A mapping from class names to the examples of each. A
                sequence of examples, with ``targets``. Examples are images (paths, Pillow images, arrays or tensors
                [H, W], [H, W, C] or [C, H, W]), texts, or rows of numbers.
            targets: For a sequence of examples: a class name each, or in regression a row of numbers each.
            steps: Adaptation steps; ``None`` takes as many as the run does on its test tasks.
            seed: The seed of the adaptation's random numbers; ``None`` takes the run's.

        Returns:
            The adapted learner, whose ``predict(examples)`` gives labels, probabilities and values.

        Raises:
            UserError: The support set is missing something, or has fewer than two classes or more than fit.
            TypeError: An example is none of the above.
        """
        items, targets = _examples(self.inputs, support, targets)
        self.inputs.check()
        seed = self.seed if seed is None else seed
        return AdaptedLearner.adapt(self.algorithm, self.inputs, items, targets, steps=steps, seed=seed)


def learner_of(
    directory: RunDirectory,
    config: dict[str, Any],
    facts: dict[str, Any],
    changes: Mapping[str, Any],
    objects: Mapping[str, Any] | None = None,
) -> TrainedLearner:
    """The learner that a run tests.

    No training data are read, unless the run is from before a run directory held how its inputs are read.

    Args:
        directory: The run directory.
        config: Its configuration, with the changes.
        facts: Its facts, as :func:`~metarun.runs.stored.reread` gives them.
        changes: The keys that were changed, with their values.
        objects: Components that exist already, by section.

    Raises:
        UserError: The run learns control, or its checkpoint does not fit its configuration.
    """
    config["runner"]["devices"] = 1
    kept = directory.inputs()
    if kept is None:
        experiment = build(config, facts, directory.path, objects=objects, trains=False)
        iteration = trained(directory, experiment)[1]
        if not isinstance(experiment.algorithm, SupervisedAlgorithm):
            raise UserError(f"{READABLE}; an RL learner, as this run's, adapts by acting   in Python: run.agent")
        return TrainedLearner(experiment.algorithm, Inputs.of(experiment.task), iteration, experiment.seed)
    objects = objects or {}
    check(config, objects)
    for key in changes:
        if key.startswith("task."):
            log.info("%s changes nothing: adapt reads no training data, and the run keeps how its inputs are read", key)
    config = dict(resolved(config))
    runner = Runner(**config["runner"])
    torch.set_default_dtype(precision.parameters_dtype(runner.precision))
    device, path = choose_device(runner.device), tested_checkpoint(directory, runner.select)
    inputs = Inputs.from_dict(kept, str(directory.path / "inputs.json"))
    state = checkpoint.load(path, device)
    torch.manual_seed(config["seed"])
    parameters, dtype = state["algorithm"]["parameters"], torch.get_default_dtype()
    algorithm = rebuilt(config, inputs.spec, parameters, f"checkpoint {path}", dtype, objects).to(device)
    precision.settle(algorithm, runner.precision, device)
    algorithm.restore(state["algorithm"])
    checkpoint.require_statistics(algorithm, path)
    checkpoint.set_temperature(algorithm, state)
    return TrainedLearner(algorithm, inputs, checkpoint.iteration(state), config["seed"])


def _examples(inputs: Inputs, support: Any, targets: Sequence[Any] | None) -> tuple[Sequence[Any], Sequence[Any]]:
    """The examples of a support set and a target for each."""
    if isinstance(support, str | Path):
        require(targets is None, "a path holds its targets itself: leave out targets")
        found = sources.support(inputs, Path(support).expanduser())
        return found.items, found.targets
    if isinstance(support, Mapping):
        require(targets is None, "a mapping from class names to examples holds its targets itself: leave out targets")
        pairs = [(item, str(name)) for name, items in support.items() for item in items]
        return [item for item, _ in pairs], [name for _, name in pairs]
    require(targets is not None, "targets are missing: give a class name, or a row of numbers, for each example")
    assert targets is not None
    items = list(support)
    require(len(items) == len(targets), f"{len(items)} examples have {len(targets)} targets")
    return items, [str(target) for target in targets] if inputs.spec.kind == "classification" else targets
