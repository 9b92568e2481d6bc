"""The outer step of a run: gradient by a plan, mean over processes, optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from operator import attrgetter, itemgetter
from typing import Any

from metarun import distributed
from metarun.algorithms.base import Algorithm, Metrics
from metarun.algorithms.rl.base import RLAlgorithm
from metarun.algorithms.supervised import SupervisedAlgorithm, running_statistics
from metarun.engine.capture import Captured, tensors_of
from metarun.engine.plan import Plan
from metarun.engine.recorder import Recorder
from metarun.kernels.fusion import fuse_layers
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import TaskBatch

log = logging.getLogger("metarun")

MAX_RECORDINGS = 8
"""Recordings kept at once; with one more, all are made anew."""


class Engine:
    """Takes the outer steps of an algorithm, computed by a :class:`Plan`, and keeps what it has recorded.

    Algorithms that are no :class:`SupervisedAlgorithm` take their steps themselves; those of RL record their functions
    if the plan records.
    """

    def __init__(self, algorithm: Algorithm, plan: Plan | None = None) -> None:
        self.algorithm: Any = algorithm.train()
        self.recordings: dict[Any, Captured | None] = {}
        self.processes = distributed.world_size()
        # Going through all modules, as these do, takes as long as a small step.
        self.parameters = list(algorithm.parameters())
        self.is_normalised = any(isinstance(layer, BatchNorm) for layer in algorithm.modules())
        self.plan = plan or Plan()

    @property
    def plan(self) -> Plan:
        """The way in which gradients are computed; it also settles whether evaluation batches tasks."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan
        if isinstance(self.algorithm, RLAlgorithm):
            self.algorithm.recorder = None if plan.capture == "none" else Recorder(self.algorithm)
        if isinstance(self.algorithm, SupervisedAlgorithm) and self.algorithm.batch_tasks != plan.batched:
            self.algorithm.batch_tasks = plan.batched

    def adopt(self, other: Engine, plan: Plan) -> None:
        """Use the recordings for ``plan`` that another engine has made of a copy of the algorithm."""
        if isinstance(self.algorithm, SupervisedAlgorithm) and self.algorithm.training == other.algorithm.training:
            for key, recording in other.recordings.items():
                _, recorded, *_ = key
                if recorded == plan and recording is not None:
                    self.recordings[key] = recording.of(self.algorithm)

    def meta_step(self, batch: Any, iteration: int) -> Metrics:
        """Take one outer step, as :meth:`Algorithm.meta_step` does, on this process's tasks of the meta-batch."""
        algorithm = self.algorithm
        if not isinstance(algorithm, SupervisedAlgorithm) or algorithm.optimizer is None:
            return algorithm.meta_step(batch, iteration)
        algorithm.begin_iteration(iteration)
        metrics = self.gradient(batch)
        if self.processes > 1:
            distributed.average_gradients(self.parameters, running_statistics(algorithm))
        algorithm.apply_gradients()
        return metrics

    def gradient(self, batch: TaskBatch | list[TaskBatch]) -> Metrics:
        """Store the gradient of the mean outer loss on the parameters and return the mean over tasks of each metric.

        Args:
            batch: The tasks. Those of several sizes are a batch for each size, computed one after another.
        """
        algorithm, plan = self.algorithm, self._plan
        groups = batch if isinstance(batch, list) else [batch]
        total: Metrics = {}
        for parameter in self.parameters:
            parameter.grad = None
        fused = plan.batched and algorithm.precision == "float32" and self.is_normalised
        with algorithm.computing(), fuse_layers(True) if fused else nullcontext():
            for part, share in parts(groups, None if algorithm.needs_full_meta_batch else plan.chunk):
                recording = None if plan.capture == "none" else self._recording(part)
                if recording is None:
                    loss, metrics = algorithm.outer_loss(part)
                    (loss if share == 1 else loss * share).backward()
                else:
                    metrics = recording.add_gradient(*tensors_of(part), share=share)
                for name, value in metrics.items():
                    value = value if share == 1 else value * share
                    total[name] = total[name] + value if name in total else value
        return total

    def _recording(self, part: TaskBatch) -> Captured | None:
        """The recording for parts of this shape, made when first asked for; ``None`` if there can be none."""
        algorithm, plan = self.algorithm, self._plan
        key = algorithm.capture_key(algorithm.iteration)
        if algorithm.iteration > 0 and key != algorithm.capture_key(algorithm.iteration - 1):
            return None  # a function of the iteration alone, so that a resumed run does the same
        key = (key, plan, *((t.shape, t.dtype, t.device) for t in tensors_of(part)))
        if key not in self.recordings:
            if len(self.recordings) > MAX_RECORDINGS:
                self.recordings.clear()
            try:
                self.recordings[key] = Captured(algorithm, part, plan.capture)
            except Exception as error:
                log.warning(
                    "the step could not be captured and runs uncaptured (%s)", " ".join(str(error).split())[:200]
                )
                self.recordings[key] = None
        return self.recordings[key]


def parts(groups: Sequence[TaskBatch], chunk: int | None) -> Iterator[tuple[TaskBatch, float]]:
    """Cut batches into parts of at most ``chunk`` tasks; yields each with its share in the mean over all tasks."""
    sizes = list(map(len, map(attrgetter("query.y"), groups)))
    for group, tasks in zip(groups, sizes, strict=True):
        size = min(chunk or tasks, tasks)
        for first in range(0, tasks, size):
            part = group if size == tasks else group.map(itemgetter(slice(first, first + size)))
            yield part, len(part.query.y) / sum(sizes)
