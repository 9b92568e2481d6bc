"""Adam on all parameters at once."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors


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
        """Take a step along the gradients that the parameters hold. Parameters without a gradient are unchanged."""
        for hook in self._optimizer_step_pre_hooks.values():
            hook(self, (), {})
        for number, group in enumerate(self.param_groups):
            parameters = [p for p in group["params"] if p.grad is not None]
            before, moments = self._moments.get(number, ([], []))
            if len(parameters) != len(before) or any(p is not q for p, q in zip(parameters, before, strict=True)):
                moments = self._gathered(parameters)
                self._moments[number] = parameters, moments
            for each in moments:
                each.step(group)
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
        self._parameters = parameters
        averages = []
        for name in ("exp_avg", "exp_avg_sq"):
            averages.append(torch.cat([s[name].reshape(-1) if s else torch.zeros_like(p).reshape(-1)
                                       for p, s in zip(parameters, states, strict=True)]))  # fmt: skip
        self._mean, self._square = averages
        self._root = torch.empty_like(self._mean)
        self._taken = int(states[0]["step"]) if states[0] else 0
        self._step = torch.tensor(float(self._taken))
        self._means, self._roots = self._views(self._mean), self._views(self._root)
        for state, mean, square in zip(states, self._means, self._views(self._square), strict=True):
            state.update(step=self._step, exp_avg=mean, exp_avg_sq=square)

    def _views(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([p.numel() for p in self._parameters])
        return [part.view(p.shape) for part, p in zip(parts, self._parameters, strict=True)]

    def step(self, group: Mapping[str, Any]) -> None:
        """Take a step along the parameters' gradients, in the order of operations of torch's Adam."""
        self._taken += 1
        self._step.fill_(self._taken)
        first, second = group["betas"]
        gradient = _flatten_dense_tensors([p.grad for p in self._parameters])
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        torch.sqrt(self._square, out=self._root)
        self._root.div_((1 - second**self._taken) ** 0.5).add_(group["eps"])
        size = group["lr"] / (1 - first**self._taken)
        torch._foreach_addcdiv_(self._parameters, self._means, self._roots, -size)
