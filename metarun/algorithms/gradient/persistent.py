"""Persistent evolution strategies on training problems of different kinds: meta-training of learned optimizers."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from metarun.algorithms.base import Algorithm, Metrics
from metarun.algorithms.functional import function_of_tensors, without_compiler
from metarun.algorithms.gradient.evolution import finite
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import Rule, State
from metarun.algorithms.gradient.truncated import mapped
from metarun.algorithms.outer_optimizer import Adam, Schedule
from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.tasks.optimization.problem import Problem
from metarun.tasks.to_device import to_device
from metarun.types import Count, Decay, Positive, Rate


class PersistentEvolution(Algorithm):
    """Meta-trains an update rule by persistent evolution strategies (Vicol, Metz & Sohl-Dickstein 2021,
    arXiv:2112.13835, Algorithm 2).

    Each problem of a meta-batch is trained by ``pairs`` pairs of particles, optimizers with meta-parameters theta + e
    and theta - e. An outer step takes the next ``unroll`` training steps of all problems with a new e ~ N(0,
    ``sigma``^2) for each pair. With the sum d of a pair's e since the training began, the mean over problems and pairs
    of d (L+ - L-) / (2 sigma^2) estimates the gradient, without truncation bias. L is the mean over the window of the
    training losses before each step, each at most ``cap``, in units of that of constant predictions. A training ends
    after a log-uniform number of ``unroll`` to ``inner_steps`` steps, so problems are at different stages. Problem t of
    the current meta-batch then takes its place. Unfinished trainings are part of the checkpoint.

    The model has no effect. Metric: the training loss on the next minibatch after 0, ..., ``test_steps`` steps.
    """

    kinds: ClassVar[tuple[str, ...]] = ("optimization",)
    needs_full_meta_batch = True

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        rule: Rule,
        inner_lr: Rate,
        inner_steps: Positive,
        test_steps: Count,
        unroll: Positive,
        pairs: Positive,
        sigma: Rate,
        cap: Rate,
        outer_lr: Rate,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        self.model, self.spec, self.rule = model.requires_grad_(False), spec, rule
        self.inner_lr, self.inner_steps, self.test_steps = inner_lr, inner_steps, test_steps
        self.unroll, self.pairs, self.sigma, self.cap = min(unroll, inner_steps), pairs, sigma, cap
        rule.prepare({}, inner_lr, inner_steps)
        fits = bool([*rule.parameters()]) and rule.fits_any_parameters and not rule.carries
        require(fits, f"algorithm.rule: {type(rule).__name__} has no learned values that fit any network's parameters")
        self.schedule = Schedule(outer_lr, decay_over=decay_over, decay=decay)
        self.optimizer = Adam(self.rule.parameters(), lr=outer_lr)
        self.kept: list[dict[str, Any]] = []  # the unfinished training of each problem: tensors and plain values

    @torch.no_grad()
    def meta_step(self, batch: list[Problem], iteration: int) -> Metrics:
        self.train()
        self.schedule.apply(self.optimizer, iteration)
        if len(self.kept) != len(batch):
            self.kept = [self.begin(problem) for problem in batch]
        pairs = zip(self.kept, batch, strict=True)
        self.kept = [kept if kept["step"] < kept["steps"] else self.begin(problem) for kept, problem in pairs]
        theta = self.theta()
        gradients, losses = zip(*(self.window(kept, theta) for kept in self.kept), strict=True)
        for name in theta:
            self.get_parameter(name).grad = torch.stack([gradient[name] for gradient in gradients]).mean(0)
        self.optimizer.step()
        return {"loss": torch.stack(losses).mean()}

    def theta(self) -> Parameters:
        """Return the meta-parameters by name."""
        return {f"rule.{name}": p.detach() for name, p in self.rule.named_parameters()}

    def begin(self, problem: Problem) -> dict[str, Any]:
        """Return the training of a problem before its first step."""
        steps = int(self.unroll * (self.inner_steps / self.unroll) ** float(torch.rand(())))
        parameters = {n: p.expand(2 * self.pairs, *p.shape).clone() for n, p in problem.initial.items()}
        drift = {n: p.new_zeros(self.pairs, *p.shape) for n, p in self.theta().items()}
        state = vmap(self.rule.init)(parameters)
        return {"problem": dict(vars(problem)), "steps": steps, "step": 0, "parameters": parameters, "state": state,
                "drift": drift}  # fmt: skip

    def window(self, kept: dict[str, Any], theta: Parameters) -> tuple[Parameters, Tensor]:
        """Take the next steps of a training; return its part of the gradient and the mean loss []."""
        # From the host's random numbers, as the lengths of trainings are: the same on every device.
        noise = {n: to_device(self.sigma * torch.randn(self.pairs, *p.shape, dtype=p.dtype), p.device)
                 for n, p in theta.items()}  # fmt: skip
        kept["drift"] = {n: drift + noise[n] for n, drift in kept["drift"].items()}
        particles = {n: torch.cat([p + noise[n], p - noise[n]]) for n, p in theta.items()}
        problem, last = Problem(**kept["problem"]), min(kept["step"] + self.unroll, kept["steps"])
        steps = range(kept["step"], last)
        losses, parameters, state = self.unrolled(problem, particles, kept["parameters"], kept["state"], steps)
        kept.update(parameters=parameters, state=state, step=last)
        mean = losses.nan_to_num(nan=self.cap).clamp(max=self.cap).mean(0)
        differences = finite(mean[: self.pairs] - mean[self.pairs :]) / (2 * self.sigma**2 * self.pairs)
        return {n: torch.tensordot(differences, drift, 1) for n, drift in kept["drift"].items()}, mean.mean()

    @without_compiler()
    def unrolled(
        self, problem: Problem, particles: Parameters, parameters: Parameters, state: State, steps: range
    ) -> tuple[Tensor, Parameters, State]:
        """Train M networks by M optimizers; return losses before each step [steps, M], new parameters and state."""
        losses = []
        for step in steps:
            gradients, loss = vmap(grad_and_value(problem.loss), (0, None, None))(parameters, *problem.minibatch(step))
            update = function_of_tensors(self, partial(self.rule.update, step=step))
            changes, state = vmap(update)(particles, gradients, state)
            parameters = {name: p + changes[name] for name, p in parameters.items()}
            losses.append(loss)
        return torch.stack(losses), parameters, state

    @torch.no_grad()
    def evaluate(self, batch: list[Problem]) -> Metrics:
        self.eval()
        curves = []
        for problem in batch:
            parameters = {name: p[None] for name, p in problem.initial.items()}
            state, theta = vmap(self.rule.init)(parameters), {n: p[None] for n, p in self.theta().items()}
            losses, *_ = self.unrolled(problem, theta, parameters, state, range(self.test_steps + 1))
            curves.append(losses[:, 0])
        return {"loss": torch.stack(curves)}

    def protocol(self) -> dict[str, Any]:
        rule = f"{type(self.rule).__name__}({self.rule.extra_repr()})"
        return {"rule": rule, "inner_lr": self.inner_lr, "inner_steps": self.inner_steps, "test_steps": self.test_steps}

    def get_extra_state(self) -> list[dict[str, Any]]:
        return [dict(each) for each in self.kept]

    def set_extra_state(self, state: list[dict[str, Any]]) -> None:
        self.kept = state

    def _apply(self, fn: Any, recurse: bool = True) -> PersistentEvolution:
        """Also move the unfinished trainings in ``to``."""
        self.kept = mapped(fn, self.kept)
        return super()._apply(fn, recurse)
