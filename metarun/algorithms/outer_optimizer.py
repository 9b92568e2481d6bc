"""The outer optimizer: Adam on all parameters at once, and the schedule of the learning rate."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from math import cos, pi
from operator import attrgetter, is_not
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from metarun.types import Decay


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1) by a few operations on a vector of all parameters.

    Its results and its ``state_dict`` are those of ``torch.optim.Adam``, to the bit. On the CPU, torch's takes ten
    operations for each parameter, as long as the gradient of a small network. torch's ``fused`` version rounds
    differently, and it reads a gradient of another memory layout than its parameter in the wrong order.

    Args:
        parameters: Parameters to learn.
        lr: Learning rate.
        betas: Decay rates of the moving averages of the gradient and of its square.
        eps: Added to the denominator.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})
        self._moments: dict[int, tuple[list[Tensor], list[_Moments]]] = {}
        """By the number of a group: its parameters that had a gradient in the last step, and their moments."""

    # torch's own, without the guard against torch.compile that each of them calls first: it imports the compiler, which
    # takes as long as importing all the rest of torch.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._moments = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients that the parameters hold. Parameters without a gradient are unchanged.

        The operations are torch's, in its order.
        """
        for hook in self._optimizer_step_pre_hooks.values():
            hook(self, (), {})
        for number, group in enumerate(self.param_groups):
            has_gradient = map(partial(is_not, None), map(attrgetter("grad"), group["params"]))
            parameters = list(compress(group["params"], has_gradient))
            first, second = group["betas"]
            before, moments = self._moments.get(number, ([], []))
            if len(parameters) != len(before) or any(map(is_not, parameters, before)):
                moments = self._gathered(parameters)
                self._moments[number] = parameters, moments
            for each in moments:
                each.taken += 1
                each.step.fill_(each.taken)
                gradient = _flatten_dense_tensors(list(map(attrgetter("grad"), each.parameters)))
                each.mean.lerp_(gradient, 1 - first)
                each.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                torch.sqrt(each.square, out=each.root)
                each.root.div_((1 - second**each.taken) ** 0.5).add_(group["eps"])
                size = group["lr"] / (1 - first**each.taken)
                torch._foreach_addcdiv_(each.parameters, each.means, each.roots, -size)
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (), {})

    # torch then leaves the method as it is. It would wrap it in one that calls the hooks and makes a profiler's record,
    # which takes as long as the step of a small network.
    step.hooked = True  # type: ignore[attr-defined]

    def _gathered(self, parameters: Sequence[Tensor]) -> list[_Moments]:
        """Move the moments of parameters to vectors, one for those of the same device, type and number of steps."""
        parts: dict[Any, list[Tensor]] = defaultdict(list)
        for p in parameters:
            taken = float(self.state[p]["step"]) if self.state[p] else 0.0
            parts[p.device, p.dtype, taken].append(p)
        return [_Moments(part, [self.state[p] for p in part]) for part in parts.values()]


class _Moments:
    """The moving averages of parameters as vectors, of which the parameters' states are views.

    Args:
        parameters: Parameters of one device and type.
        states: Their states, which are changed; empty if they have not taken a step yet.
    """

    def __init__(self, parameters: list[Tensor], states: list[dict[str, Any]]) -> None:
        self.parameters = parameters
        averages = []
        for name in ("exp_avg", "exp_avg_sq"):
            averages.append(torch.cat([s[name].reshape(-1) if s else torch.zeros_like(p).reshape(-1)
                                       for p, s in zip(parameters, states, strict=True)]))  # fmt: skip
        self.mean, self.square = averages
        self.root = torch.empty_like(self.mean)
        self.taken = int(states[0]["step"]) if states[0] else 0
        self.step = torch.tensor(float(self.taken))
        self.means, self.roots = self._views(self.mean), self._views(self.root)
        for state, mean, square in zip(states, self.means, self._views(self.square), strict=True):
            state.update(step=self.step, exp_avg=mean, exp_avg_sq=square)

    def _views(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]


@dataclass(frozen=True)
class Schedule:
    """``lr``, halved every ``halve_every`` iterations, and brought to 0 over ``decay_over``: null for neither.

    At iteration i of the N that it decays over, ``linear`` takes the fraction 1 - i / N of the rate, and ``cosine``
    (1 + cos(pi i / N)) / 2 (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, without restarts).
    """

    lr: float
    halve_every: int | None = None
    decay_over: int | None = None
    decay: Decay = "linear"

    def rate(self, iteration: int) -> float:
        """Return the learning rate at ``iteration``."""
        halved = self.lr * (0.5 ** (iteration // self.halve_every) if self.halve_every else 1.0)
        if not self.decay_over:
            return halved
        done = min(1.0, iteration / self.decay_over)
        return halved * (1 - done if self.decay == "linear" else (1 + cos(pi * done)) / 2)

    def apply(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Set the learning rate of all groups of an optimizer to that at ``iteration``."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(iteration)
