"""Update rules with the formulas of common optimizers, and learned step sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarun.algorithms.gradient.parameters import Parameters, flatten, unflatten
from metarun.algorithms.gradient.pieces import SGD as SGD
from metarun.algorithms.gradient.pieces import Rule, State
from metarun.types import Fraction, Rate


class MetaSGD(Rule):
    """Meta-SGD: u = -alpha * g, a learned rate (and so direction) for every single parameter.

    Li et al. 2017, arXiv:1707.09835, equation 1. All of alpha starts at ``algorithm.inner_lr``.
    """

    fits_any_parameters = False

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        self.rates = nn.ParameterList(torch.full_like(p, lr) for p in parameters.values())

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        return {name: -rate * g for rate, (name, g) in zip(self.rates, gradients.items(), strict=True)}, state


class LSLR(Rule):
    """Learned rates per layer and step: u = -alpha[k, i] g_i for tensor i at step k.

    Antoniou, Edwards & Storkey 2019 (MAML++), arXiv:1810.09502, section 4; as in the authors' code a layer's
    weight and bias each have their own. All start at ``algorithm.inner_lr``. Steps after the last of
    meta-training take its rates.
    """

    fits_any_parameters = False

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        self.rates = nn.Parameter(torch.full((max(steps, 1), len(parameters)), lr))

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        rates = self.rates[min(step, len(self.rates) - 1)]
        return {name: -rates[i] * g for i, (name, g) in enumerate(gradients.items())}, state


class Momentum(Rule):
    """Heavy-ball momentum: v <- mu v + g, u = -lr v; v = 0 at the start of each task (Polyak 1964)."""

    def __init__(self, *, momentum: Fraction) -> None:
        super().__init__()
        self.momentum = momentum

    def init(self, parameters: Parameters) -> State:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        velocity = {name: self.momentum * state[name] + g for name, g in gradients.items()}
        return {name: -self.lr * v for name, v in velocity.items()}, velocity

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"


def root(x: Tensor) -> Tensor:
    """The square root; its derivative at 0, where a unit is dead, would be infinite, and times 0 not a number."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).sqrt()


class RMSprop(Rule):
    """RMSprop: v <- decay v + (1 - decay) g^2, u = -lr g / (sqrt(v) + eps); v = 0 at the start of each task.

    Tieleman & Hinton 2012, Coursera lecture 6.5.
    """

    def __init__(self, *, decay: Fraction, eps: Rate) -> None:
        super().__init__()
        self.decay, self.eps = decay, eps

    def init(self, parameters: Parameters) -> State:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        second = {name: self.decay * state[name] + (1 - self.decay) * g.square() for name, g in gradients.items()}
        return {name: -self.lr * g / (root(second[name]) + self.eps) for name, g in gradients.items()}, second

    def extra_repr(self) -> str:
        return f"decay={self.decay}"


class Adam(Rule):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1), step size ``algorithm.inner_lr``.

    If ``carry``, moments and step count go on from one meta-training task to the next and from one outer step to
    the next, and every test task starts from them as they stand: the inner optimizer of Reptile's authors, with
    ``beta1=0`` (arXiv:1803.02999, section 6.1 and code). Else each task starts from zeros.
    """

    count: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, *, beta1: Fraction, beta2: Fraction, eps: Rate, carry: bool) -> None:
        super().__init__()
        self.beta1, self.beta2, self.eps, self.carries = beta1, beta2, eps, carry

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        super().prepare(parameters, lr, steps)
        if self.carries:
            for name, value in self.fresh(parameters).items():
                self.register_buffer(name, value)

    def fresh(self, parameters: Parameters) -> State:
        zeros = torch.zeros_like(flatten(parameters)).detach()
        return {"count": zeros.new_zeros(()), "first": zeros, "second": zeros.clone()}

    def init(self, parameters: Parameters) -> State:
        return dict(self.named_buffers()) if self.carries else self.fresh(parameters)

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        g = flatten(gradients)
        count = state["count"] + 1
        first = self.beta1 * state["first"] + (1 - self.beta1) * g
        second = self.beta2 * state["second"] + (1 - self.beta2) * g.square()
        scale = root(second / (1 - self.beta2**count)) + self.eps
        change = -self.lr * first / (1 - self.beta1**count) / scale
        return unflatten(change, gradients), {"count": count, "first": first, "second": second}

    def keep(self, state: State) -> None:
        self.count, self.first, self.second = (state[name].detach() for name in ("count", "first", "second"))

    def extra_repr(self) -> str:
        return f"beta1={self.beta1}, beta2={self.beta2}, carry={self.carries}"
