"""Gradient clipping and weight decay of the outer optimizers, and the logged learning rate and gradient norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from metarun.algorithms.base import Algorithm
from metarun.training.settings import Runner


class OuterUpdates:
    """Acts before every step of every optimizer that an algorithm holds, by hooks.

    The gradient of an optimizer's parameters is scaled down to an L2 norm of at most ``runner.max_grad_norm``. Weight
    decay is decoupled from the gradient (AdamW, Loshchilov & Hutter 2019, arXiv:1711.05101): a step first multiplies
    the parameters that have a gradient by 1 - lr * ``runner.weight_decay``. Without either, steps are unchanged.

    Args:
        algorithm: The algorithm.
        runner: The runner's keys.
    """

    def __init__(self, algorithm: Algorithm, runner: Runner) -> None:
        self.max_norm, self.decay = runner.max_grad_norm, runner.weight_decay
        self.optimizers = {
            name.removesuffix("optimizer"): optimizer for name, optimizer in algorithm.optimizers().items()
        }
        self.measuring = False
        """True if the norms of the coming steps are kept for :meth:`row`."""
        self._norms: dict[str, list[Tensor]] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hook into the optimizers within the block."""
        with ExitStack() as hooks:
            for name, optimizer in self.optimizers.items():
                hooks.callback(optimizer.register_step_pre_hook(partial(self._before_step, name)).remove)
            yield

    def row(self) -> dict[str, float]:
        """Return learning rates, and the norms (before clipping) of the measured steps, their mean; forget the norms.

        The names are ``lr`` and ``gradient_norm``, with a prefix for an optimizer of another name than ``optimizer``.
        """
        found: dict[str, float] = {}
        for name, optimizer in self.optimizers.items():
            found[f"{name}lr"] = float(optimizer.param_groups[0]["lr"])
            if name in self._norms:
                found[f"{name}gradient_norm"] = float(torch.stack(self._norms[name]).mean())
        self._norms = {}
        return found

    def _before_step(self, name: str, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not (self.measuring or self.max_norm or self.decay):
            return
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in optimizer.param_groups]
        parameters = [p for _, chosen in groups for p in chosen]
        if not parameters:
            return
        if self.measuring or self.max_norm:
            gradients: list[Tensor] = [p.grad for p in parameters]
            norm = get_total_norm(gradients)
            if self.measuring:
                self._norms.setdefault(name, []).append(norm.detach())
            if self.max_norm:
                # Not in place: a recorded step may own the gradients.
                scale = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
                for p, gradient in zip(parameters, torch._foreach_mul(gradients, scale), strict=True):
                    p.grad = gradient
        if self.decay:
            with torch.no_grad():
                for group, chosen in groups:
                    torch._foreach_mul_(chosen, 1 - float(group["lr"]) * self.decay)
