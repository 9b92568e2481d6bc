"""The outer step of a run: gradient by a plan, mean over processes, optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metarun import distributed
from metarun.algorithms.base import Algorithm, Metrics
from metarun.algorithms.supervised import SupervisedAlgorithm, running_statistics
from metarun.engine.capture import Captured
from metarun.engine.plan import Plan
from metarun.kernels.fusion import fuse_layers
from metarun.tasks.episode import TaskBatch

log = logging.getLogger("metarun")

MAX_RECORDINGS = 8
"""Recordings kept at once; with one more, all are made anew."""


class Engine:
    """Takes the outer steps of an algorithm, computed by a :class:`Plan`, and keeps what it has recorded.

    Algorithms that are no :class:`SupervisedAlgorithm` take their steps themselves.
    """

    def __init__(self, algorithm: Algorithm, plan: Plan | None = None) -> None:
        self.algorithm: Any = algorithm.train()
        self.recordings: dict[Any, Captured | None] = {}
        self.plan = plan or Plan()

    @property
    def plan(self) -> Plan:
        """The way in which gradients are computed; it also settles whether evaluation batches tasks."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan
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
        if distributed.world_size() > 1:
            distributed.average_gradients(algorithm.parameters(), running_statistics(algorithm))
        algorithm.apply_gradients()
        return metrics

    def gradient(self, batch: TaskBatch | list[TaskBatch]) -> Metrics:
        """Store the gradient of the mean outer loss on the parameters and return the mean over tasks of each metric.

        Args:
            batch: The tasks. Those of several sizes are a batch for each size, computed one after another.
        """
        if isinstance(batch, list):
            return self._gradient_of_groups(batch)
        algorithm, plan = self.algorithm, self._plan
        size = len(batch.query.y) if plan.chunk is None or algorithm.needs_full_meta_batch else plan.chunk
        recording = None if plan.capture == "none" or size < len(batch.query.y) else self._recording(batch)
        if recording is not None:
            metrics, gradients = recording(batch)
            for p, g in zip(recording.learned.values(), gradients, strict=True):
                p.grad = g
            return metrics
        algorithm.zero_grad()
        total: Metrics = {}
        with self._computing():
            for part, share in parts(batch, size):
                for name, value in self._add_gradient(part, share).items():
                    value = value if share == 1 else value * share
                    total[name] = total[name] + value if name in total else value
        return total

    def _gradient_of_groups(self, groups: list[TaskBatch]) -> Metrics:
        tasks = sum(len(group.query.y) for group in groups)
        total: Metrics = {}
        self.algorithm.zero_grad()
        with self._computing():
            for group in groups:
                for part, share in parts(group, self._plan.chunk):
                    weight = share * len(group.query.y) / tasks
                    for name, value in self._add_gradient(part, weight).items():
                        total[name] = total[name] + value * weight if name in total else value * weight
        return total

    def _add_gradient(self, part: TaskBatch, share: float) -> Metrics:
        """Add the gradient of one part of a meta-batch, times its share, to the parameters'; return its metrics."""
        recording = None if self._plan.capture == "none" else self._recording(part)
        if recording is None:
            loss, metrics = self.algorithm.outer_loss(part)
            (loss if share == 1 else loss * share).backward()
            return metrics
        metrics, gradients = recording(part)
        for p, g in zip(recording.learned.values(), gradients, strict=True):
            if g is not None:
                g = g if share == 1 else g * share
                p.grad = g if p.grad is None else p.grad.add_(g)
        return metrics

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute in the algorithm's precision and with fused layers within the block."""
        fused = self._plan.batched and self.algorithm.precision == "float32"
        with self.algorithm.computing(), fuse_layers(fused):
            yield

    def _recording(self, part: TaskBatch) -> Captured | None:
        """The recording for parts of this shape, made when first asked for; ``None`` if there can be none."""
        algorithm, plan = self.algorithm, self._plan
        key = algorithm.capture_key(algorithm.iteration)
        if algorithm.iteration > 0 and key != algorithm.capture_key(algorithm.iteration - 1):
            return None  # a function of the iteration alone, so that a resumed run does the same
        data = (part.support.x, part.support.y, part.query.x, part.query.y)
        key = (key, plan, *((t.shape, t.dtype, t.device) for t in data))
        if key not in self.recordings:
            if len(self.recordings) > MAX_RECORDINGS:
                self.recordings.clear()
            try:
                with self._computing():
                    self.recordings[key] = Captured(algorithm, part, plan.capture)
            except Exception as error:
                log.warning(
                    "the step could not be captured and runs uncaptured (%s)", " ".join(str(error).split())[:200]
                )
                self.recordings[key] = None
        return self.recordings[key]


def parts(batch: TaskBatch, chunk: int | None) -> Iterator[tuple[TaskBatch, float]]:
    """Cut ``batch`` into parts of at most ``chunk`` tasks; yields each with its share in the mean over tasks."""
    tasks = len(batch.query.y)
    size = min(chunk or tasks, tasks)
    if size == tasks:
        yield batch, 1.0
        return
    for first in range(0, tasks, size):
        part = batch.map(lambda values, first=first: values[first : first + size])  # type: ignore[misc]
        yield part, len(part.query.y) / tasks
