"""An inner loop whose steps differ: a loss after each of them, and normalisation of its own at each (MAML++)."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.gradient.adapts import affine
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import AdaptedParameters, OuterGradient
from metarun.errors import require
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count

FLOOR = 0.03
"""Smallest weight of an early step while it has one, as a part of 1 / K (the authors' code)."""


class MultiStep(OuterGradient):
    """The query losses after every one of K inner steps, weighted: sum over k = 1 .. K of w_k l(phi_k; Q).

    The multi-step loss of Antoniou, Edwards & Storkey 2019 (MAML++), arXiv:1810.09502, equation 4. At iteration i of
    the N = ``anneal_over`` in which early steps count, the weights are those of the authors' code,

        w_k = max(1 - i / N, 0.03) / K  for k < K,   w_K = 1 - (K - 1) w_1;

    from then on w_K = 1 alone, which is MAML's loss. The gradient goes through the inner loop; before the iteration
    ``first_order_for`` the inner gradients are constants (derivative-order annealing, section 4). Metrics are of the
    last step.
    """

    iteration: Tensor

    def __init__(self, *, anneal_over: Count, first_order_for: Count) -> None:
        super().__init__()
        self.anneal_over, self.first_order_for = anneal_over, first_order_for
        # A buffer is an input of a recorded step, so that one recording serves for all weights.
        self.register_buffer("iteration", torch.zeros(()), persistent=False)

    def prepare(self, learner: InnerLoopLearner) -> None:
        require(learner.inner_steps > 0, "algorithm.inner_steps=0: a loss after each inner step needs one")
        require(not learner.rule.carries, "algorithm.rule.carry=true: losses along the way need all tasks at once")

    def begin_iteration(self, iteration: int) -> None:
        self.iteration.fill_(iteration)

    def capture_key(self, iteration: int) -> tuple[bool, bool]:
        """Return whether gradients are of first order, and whether early steps count."""
        return iteration < self.first_order_for, iteration < self.anneal_over

    def weights(self, steps: int) -> Tensor:
        """w_k [``steps``], while early steps count."""
        early = (1 - self.iteration / self.anneal_over).clamp_min(FLOOR) / steps
        return torch.stack([early] * (steps - 1) + [1 - (steps - 1) * early])

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        first_order, along = self.capture_key(learner.iteration)
        if not along:
            return learner.query_loss(*learner.adapted(batch.support, first_order), batch)
        trajectory = learner.trajectory(batch.support, learner.inner_steps, learner.inner_batch, first_order)
        points = enumerate(islice(trajectory, 1, None))
        results = [learner.query_loss(parameters, dims, batch, step) for step, (parameters, dims, _) in points]
        losses = torch.stack([loss for loss, _ in results])
        return self.weights(len(losses)) @ losses, results[-1][1]

    def extra_repr(self) -> str:
        return f"anneal_over={self.anneal_over}, first_order_for={self.first_order_for}"


class StepNorm(AdaptedParameters):
    """The parameters that ``adapts`` selects, with normalisation factors and offsets for each inner step.

    Per-step batch normalisation weights and biases of MAML++ (Antoniou, Edwards & Storkey 2019, arXiv:1810.09502,
    section 4), here of any normalisation: K = ``algorithm.inner_steps`` sets [K, ...], of which set k serves the
    gradient of step k and queries after that step. Steps beyond K take the last, queries before any step the first.
    Sets are meta-learned, from the model's own values, and do not adapt; a factor or offset that ``adapts`` lets
    adapt stays a single one. By first-order gradients a set learns from the query loss after its own step alone, and
    so not at all where that does not count.

    The paper's running statistics for each step are left out because they have no effect: the authors' code keeps
    them, but normalises at all times, at test too, by the batch at hand, which is ``norm: transductive``; and
    ``norm: support`` takes the support set's, anew at each step.
    """

    def __init__(self, *, adapts: AdaptedParameters) -> None:
        super().__init__()
        self.adapts, self.any_way = adapts, adapts.any_way

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        return self.adapts.attach(net, spec)

    def prepare(self, learner: InnerLoopLearner) -> None:
        self.adapts.prepare(learner)
        chosen = affine(learner.net) - {*learner.adapted_names}
        single = {name: p for name, p in learner.net.named_parameters() if name in chosen}
        self.names, sets = list(single), max(learner.inner_steps, 1)
        self.sets = nn.ParameterList(p.detach().expand(sets, *p.shape).clone() for p in single.values())
        for p in single.values():
            p.requires_grad_(False)  # a set stands in for it at every step

    def overrides_at(self, step: int) -> Parameters:
        sets = {name: values[min(step, len(values) - 1)] for name, values in zip(self.names, self.sets, strict=True)}
        return {**self.adapts.overrides_at(step), **sets}

    def initial(self, learner: InnerLoopLearner, support: Labelled) -> tuple[Parameters, Any]:
        return self.adapts.initial(learner, support)

    def extra_repr(self) -> str:
        return f"adapts={type(self.adapts).__name__}({self.adapts.extra_repr()})"
