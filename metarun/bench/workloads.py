"""Workloads: the outer steps of well-known settings on random data of the same shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import construct
from metarun.config.compose import compose
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch

Method = Literal["maml", "fomaml", "anil", "reptile", "protonet"]


@dataclass(frozen=True)
class Workload:
    """A learner and the shape of its meta-batch.

    Attributes:
        name: Name on the command line.
        text: Description for tables.
        method: Meta-learning method.
        words: Overrides of the shipped configuration that describe the learner.
        spec: Shapes of inputs and outputs.
        shape: Ways, shots and queries of an episode.
        tasks: Tasks per outer step.
    """

    name: str
    text: str
    method: Method
    words: tuple[str, ...]
    spec: Spec
    shape: EpisodeShape
    tasks: int

    def with_tasks(self, tasks: int | None) -> Workload:
        """Return the workload with another number of tasks, or itself for ``None``."""
        return self if tasks is None else replace(self, tasks=tasks)


OMNIGLOT = Spec("classification", "image", (1, 28, 28), 5)
# Peers adapt all parameters including those of normalisation layers, so metarun does, too.
STRIDED = ("model=conv4", "model.width=64", "model.downsample=stride", "model.reduce=mean", "model.norm_scale=true")
POOLED = ("model=conv4", "model.downsample=pool", "model.reduce=flatten", "model.norm_scale=true")
EVERYTHING = "algorithm.adapts.norm=true"
# Plain SGD on the whole support set in all implementations: an Adam whose state lasts needs the tasks in sequence.
SGD = ("~algorithm.rule", "+algorithm.rule={_target_: metarun.algorithms.gradient.rules.SGD}")


def _omniglot(name: str, text: str, method: Method, *words: str) -> Workload:
    text = f"{text}, Omniglot's shape, 5-way 1-shot, strided Conv-4"
    return Workload(name, text, method, (*words, *STRIDED), OMNIGLOT, EpisodeShape(5, 1, 1), 32)


WORKLOADS = {
    workload.name: workload
    for workload in [
        Workload(
            "W1",
            "MAML, sinusoids, MLP of 40 and 40 units, 1 step",
            "maml",
            ("task=regression/sinusoid", "algorithm=maml", "model=mlp", "model.hidden=[40,40]", "model.init=torch",
             "algorithm.inner_lr=0.01", "algorithm.inner_steps=1"),
            Spec("regression", "vector", (1,), 1),
            EpisodeShape(0, 10, 10),
            25,
        ),
        _omniglot("W2", "MAML, 1 step", "maml", "algorithm=maml", EVERYTHING,
                  "algorithm.inner_lr=0.4", "algorithm.inner_steps=1"),
        _omniglot("W2x5", "MAML, 5 steps", "maml", "algorithm=maml", EVERYTHING,
                  "algorithm.inner_lr=0.1", "algorithm.inner_steps=5"),
        Workload(
            "W3",
            "MAML, mini-ImageNet's shape, 5-way 1-shot, 15 queries, pooled Conv-4 of 32 filters, 5 steps",
            "maml",
            ("algorithm=maml", EVERYTHING, "algorithm.inner_lr=0.01", "algorithm.inner_steps=5",
             *POOLED, "model.width=32"),
            Spec("classification", "image", (3, 84, 84), 5),
            EpisodeShape(5, 1, 15),
            4,
        ),
        Workload(
            "W4",
            "Prototypical network, Omniglot's shape, 60-way 1-shot, 5 queries, pooled Conv-4",
            "protonet",
            ("algorithm=protonet", *POOLED, "model.width=64"),
            OMNIGLOT,
            EpisodeShape(60, 1, 5),
            1,
        ),
        _omniglot("W5-FOMAML", "First-order MAML, 1 step", "fomaml", "algorithm=fomaml", EVERYTHING,
                  "algorithm.inner_lr=0.4", "algorithm.inner_steps=1"),
        _omniglot("W5-ANIL", "ANIL, 1 step", "anil", "algorithm=anil",
                  "algorithm.inner_lr=0.4", "algorithm.inner_steps=1"),
        _omniglot("W5-Reptile", "Reptile, 5 steps of plain descent", "reptile", "algorithm=reptile", *SGD,
                  "algorithm.inner_lr=0.1", "algorithm.inner_steps=5", "algorithm.inner_batch=null"),
    ]
}  # fmt: skip


class Problem:
    """A learner and one random meta-batch, which are the same for all implementations.

    Values are drawn in float32 and then cast, so that the problem is the same in all precisions.

    Args:
        workload: Learner and shape of the meta-batch.
        device: Device of the data and the learner.
        dtype: Precision of the data and the learner.
    """

    def __init__(self, workload: Workload, device: torch.device, dtype: torch.dtype) -> None:
        self.workload, self.device, self.dtype = workload, device, dtype
        self.config = compose(workload.words).config
        noise = torch.Generator().manual_seed(0)
        shape = workload.shape
        parts = (self._examples(shape.shot, noise), self._examples(shape.query, noise))
        self.batch = TaskBatch(*parts).map(self._to_device)

    def learner(self) -> Any:
        """Make a new learner. Its initial parameters are the same every time."""
        torch.manual_seed(0)
        model = construct(self.config["model"], spec=self.workload.spec)
        learner: SupervisedAlgorithm = construct(self.config["algorithm"], model=model, spec=self.workload.spec)
        with torch.no_grad():
            for p in learner.parameters():  # a wrong gradient might not show at parameters of zero or one
                p.add_(0.1 * torch.randn_like(p) * (p.abs().mean() + 0.1))
        return learner.to(device=self.device, dtype=self.dtype).train()

    def _examples(self, each: int, noise: torch.Generator) -> Labelled:
        """Draw random examples: ``each`` per class in classification, ``each`` in total in regression."""
        tasks, spec, way = self.workload.tasks, self.workload.spec, self.workload.shape.way
        if spec.kind == "regression":
            x, y = (torch.randn(tasks, each, size, generator=noise) for size in (*spec.input_shape, spec.output_size))
            return Labelled(x, y)
        y = torch.arange(way).repeat_interleave(each).expand(tasks, -1)
        return Labelled(torch.rand(*y.shape, *spec.input_shape, generator=noise), y.contiguous(), way)

    def _to_device(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype if values.is_floating_point() else None)
