"""Model-agnostic meta-learning: an initialisation from which a few gradient steps learn a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarun.algorithms.base import Adapted, Metrics, SupervisedAlgorithm, judge, task_loss, with_head
from metarun.models.norm import BatchNorm, set_policy, statistics_from
from metarun.tasks.base import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.types import Count, Positive, Rate

Parameters = dict[str, Tensor]


class MAML(SupervisedAlgorithm):
    """MAML (Finn, Abbeel & Levine 2017, arXiv:1703.03400, Algorithm 2) and its first-order form.

    The model gets a linear head. ``inner_steps`` gradient steps of size ``inner_lr`` on the support loss (a mean
    over the support set) adapt all parameters, normalisation factors and offsets only if ``adapt_norm``; the
    query loss after them is differentiated through the steps, or, if ``first_order``, as if their gradients were
    constants. ``test_steps`` steps are taken on test tasks. ``inner_steps=0`` is joint pre-training on all tasks.
    ``head_init`` is the head's standard deviation (null: torch's own initialisation). Meta-trains on episodes of
    ``train_shot`` and ``train_query`` where given. ``norm``: ``transductive`` or ``support``; a running average
    has no meaning for parameters that change with every task.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        inner_lr: Rate,
        inner_steps: Count,
        test_steps: Count,
        first_order: bool,
        adapt_norm: bool,
        norm: Literal["transductive", "support"],
        head_init: Rate | None,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
    ) -> None:
        super().__init__()
        self.spec, self.norm = spec, norm
        self.inner_lr, self.inner_steps, self.test_steps = inner_lr, inner_steps, test_steps
        self.first_order = first_order
        self.train_shot, self.train_query = train_shot, train_query
        self.net = with_head(model, spec, spec.output_size, head_init)
        set_policy(self.net, norm, elementary=True)
        frozen = {
            f"{name}.{own}"
            for name, layer in self.net.named_modules()
            if isinstance(layer, BatchNorm) and not adapt_norm
            for own, _ in layer.named_parameters(recurse=False)
        }
        self.adapted_names = [name for name, _ in self.net.named_parameters() if name not in frozen]
        # vmap's batching rule of torch's own batch norm gives a wrong second-order gradient: loop over tasks there.
        self.batched = not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.net.modules())
        self.learn_with(outer_lr, halve_every)

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        """The model without the head."""
        return self.net[0]

    def train_shape(self, shape: EpisodeShape | None) -> EpisodeShape | None:
        return shape and shape.changed(shot=self.train_shot, query=self.train_query)

    def accepts(self, shape: EpisodeShape | None) -> bool:
        return shape is None or self.spec.kind != "classification" or shape.way == self.spec.output_size

    def predict(self, parameters: Parameters, x: Tensor) -> Tensor:
        """One task's predictions [N, outputs]; ``parameters`` replace the network's own of the same names."""
        return functional_call(self.net, parameters, (x,))

    def predict_query(self, parameters: Parameters, support: Tensor, query: Tensor) -> Tensor:
        """One task's query predictions, normalised as the policy says."""
        if self.norm == "support":
            with statistics_from(self.net, len(support)):
                return self.predict(parameters, torch.cat([support, query]))[len(support) :]
        return self.predict(parameters, query)

    def inner_step(self, parameters: Parameters, x: Tensor, y: Tensor) -> Parameters:
        """One task's gradient step on its support loss."""

        def loss(parameters: Parameters) -> Tensor:
            return task_loss(self.spec.kind, self.predict(parameters, x), y)

        gradients = grad(loss)(parameters)
        if self.first_order:
            gradients = {name: g.detach() for name, g in gradients.items()}
        return {name: p - self.inner_lr * gradients[name] for name, p in parameters.items()}

    def initial(self) -> Parameters:
        """The meta-learned values of the parameters that adapt."""
        own = dict(self.net.named_parameters())
        return {name: own[name] for name in self.adapted_names}

    def trajectory(self, support: Labelled, steps: int) -> Iterator[tuple[Parameters, int | None]]:
        """Parameters after 0..``steps`` steps, each with the dimension of its tasks (none before the first)."""
        parameters, dim = self.initial(), None
        yield parameters, dim
        for _ in range(steps):
            parameters = self.over_tasks(self.inner_step, (dim, 0, 0))(parameters, support.x, support.y)
            dim = 0
            yield parameters, dim

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        for parameters, dim in self.trajectory(support, self.test_steps if steps is None else steps):

            def adapted(x: Tensor, parameters: Parameters = parameters, dim: int | None = dim) -> Tensor:
                return self.over_tasks(self.predict_query, (dim, 0, 0))(parameters, support.x, x)

            yield adapted

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        *_, learner = self.adaptations(batch.support, self.inner_steps)
        judged = judge(self.spec, learner(batch.query.x), batch.query.y)
        means = {name: value.mean() for name, value in judged.items()}
        loss = means["loss" if self.spec.kind == "classification" else "mse"]
        return loss, {name: value.detach() for name, value in means.items()}

    def over_tasks(self, f: Callable[..., Any], dims: tuple[int | None, ...]) -> Callable[..., Any]:
        """``f`` of one task as a function of many: batched where that is exact, else one task after another."""
        if self.batched:
            return vmap(f, in_dims=dims, randomness="different")

        def loop(*arguments: Any) -> Any:
            tasks = len(arguments[-1])
            each = [f(*(_pick(a, t, d) for a, d in zip(arguments, dims, strict=True))) for t in range(tasks)]
            if isinstance(each[0], dict):
                return {name: torch.stack([one[name] for one in each]) for name in each[0]}
            return torch.stack(each)

        return loop

    def protocol(self) -> dict[str, Any]:
        return {
            "norm": self.norm,
            "inner_steps": self.inner_steps,
            "test_steps": self.test_steps,
            "inner_lr": self.inner_lr,
            "first_order": self.first_order,
        }


def _pick(argument: Any, task: int, dim: int | None) -> Any:
    """One task's part of an argument of :meth:`MAML.over_tasks`."""
    if dim is None:
        return argument
    return {name: value[task] for name, value in argument.items()} if isinstance(argument, dict) else argument[task]
