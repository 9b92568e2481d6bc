"""A learned inner loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import InnerLoss
from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.types import Positive


class LearnedLoss(InnerLoss):
    """A small network of each support example's prediction p and target y judges it; the mean of that is descended.

    ML3 (Bechtle et al. 2020, arXiv:1906.05374, section 3.1): the loss M(p, y) is learned by what the task's own loss
    is after steps that descend M (equations 2 and 3). The network N has layers of ``hidden`` units, each followed by
    an ELU; targets are one-hot in classification; with ``inputs`` it sees the example's input too (vectors only).
    ``start`` is ``random``, the authors' M = softplus N(p, y), or ``task``:

        M = l(p, y) exp(N_1(p, y)) + N_2(p, y),   N = 0 at first,

    which begins as the task's own loss l and learns what each example counts and what else moves its prediction.
    """

    def __init__(self, *, hidden: Sequence[Positive], inputs: bool, start: Literal["task", "random"]) -> None:
        super().__init__()
        self.hidden, self.inputs, self.start = list(hidden), inputs, start

    def prepare(self, spec: Spec) -> None:
        super().prepare(spec)
        require(
            not self.inputs or spec.modality == "vector",
            f"algorithm.loss.inputs=true: the loss network reads inputs that are vectors, not {spec.modality}s",
        )
        self.outputs = spec.output_size
        sizes = [2 * self.outputs + (spec.input_shape[0] if self.inputs else 0), *self.hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ELU()]
        last = nn.Linear(sizes[-1], 2 if self.start == "task" else 1)
        if self.start == "task":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)

    def forward(self, prediction: Tensor, x: Tensor, y: Tensor, parameters: Parameters, initial: Parameters) -> Tensor:
        if self.kind == "classification":
            own = F.cross_entropy(prediction, y, reduction="none")
            y = (y[..., None] == torch.arange(self.outputs, device=y.device)).to(prediction.dtype)
        else:
            own = (prediction - y).square().mean(-1)
        seen = torch.cat([prediction, y, x] if self.inputs else [prediction, y], -1)
        if self.start == "random":
            return F.softplus(self.network(seen)).mean()
        counts, more = self.network(seen).unbind(-1)
        return (own * counts.exp() + more).mean()

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, inputs={self.inputs}, start={self.start}"
