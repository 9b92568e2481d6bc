"""Parts of MAML++: the multi-step query loss and normalisation parameters for each inner step."""

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
"""Smallest weight of an early step, as a multiple of 1 / K, while early steps count (the authors' code)."""


class MultiStep(OuterGradient):
    """The weighted sum of the query losses after each of K inner steps: sum over k = 1 .. K of w_k l(phi_k; Q).

    This is the multi-step loss of MAML++ (Antoniou, Edwards & Storkey 2019, arXiv:1810.09502, equation 4). At iteration
    i < N = ``anneal_over`` the weights are those of the authors' code,

        w_k = max(1 - i / N, 0.03) / K  for k < K,   w_K = 1 - (K - 1) w_1.

    Later w_K = 1 and the others are 0, which is MAML's loss. The gradient is backpropagated through the inner loop.
    Before iteration ``first_order_for`` the inner gradients are treated as constants (derivative-order annealing,
    section 4). Metrics are those after the last step.
    """

    iteration: Tensor

    def __init__(self, *, anneal_over: Count, first_order_for: Count) -> None:
        super().__init__()
        self.anneal_over, self.first_order_for = anneal_over, first_order_for
        # As a buffer it is an input of a captured step, so that one capture serves for all weights.
        self.register_buffer("iteration", torch.zeros(()), persistent=False)

    def prepare(self, learner: InnerLoopLearner) -> None:
        require(learner.inner_steps > 0, "algorithm.inner_steps=0: a loss after each inner step needs one")
        require(not learner.rule.carries, "algorithm.rule.carry=true: losses along the way need all tasks at once")
        learner.on_iteration = self.weigh_for

    def weigh_for(self, iteration: int) -> None:
        """Use the weights of an outer step.

        Args:
            iteration: Number of the outer step, from 0.
        """
        self.iteration.fill_(iteration)

    def capture_key(self, iteration: int) -> tuple[bool, bool]:
        """Return whether gradients are of first order, and whether early steps count."""
        return iteration < self.first_order_for, iteration < self.anneal_over

    def weights(self, steps: int) -> Tensor:
        """Return the weights w_k, [``steps``], while early steps count."""
        early = (1 - self.iteration / self.anneal_over).clamp_min(FLOOR) / steps
        return torch.stack([early] * (steps - 1) + [1 - (steps - 1) * early])

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        first_order, along = self.capture_key(learner.iteration)
        if not along:
            return learner.query_loss(*learner.adapted(batch.support, first_order), batch)
        trajectory = learner.trajectory(batch.support, learner.inner_steps, learner.inner_batch, first_order)
        points = islice(trajectory, 1, None)
        results = [learner.query_loss(now.parameters, now.dims, batch, now.step - 1) for now in points]
        losses = torch.stack([loss for loss, _ in results])
        return self.weights(len(losses)) @ losses, results[-1][1]

    def extra_repr(self) -> str:
        return f"anneal_over={self.anneal_over}, first_order_for={self.first_order_for}"


class StepNorm(AdaptedParameters):
    """The parameters that ``adapts`` selects, with separate normalisation weights and biases for each inner step.

    These are the per-step batch-norm weights and biases of MAML++ (Antoniou, Edwards & Storkey 2019, arXiv:1810.09502,
    section 4), here for any normalisation layer. There are K = ``algorithm.inner_steps`` sets. Set k is used for the
    gradient of step k and for queries after that step. Later steps use the last set, queries before any step the first.
    The sets are meta-learned, start at the model's values and do not adapt. Weights and biases that ``adapts`` selects
    are not split. With first-order gradients, a set only receives the gradient of the query loss after its own step.

    The paper's running statistics for each step are omitted because they have no effect. The authors' code stores them
    but always normalises by the current batch, at test too, which is ``norm: transductive``. ``norm: support`` uses the
    statistics of the support set, computed anew at each step.
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
