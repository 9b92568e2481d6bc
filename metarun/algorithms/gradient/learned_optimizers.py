"""Learned optimizers: update rules computed by a small network that is shared by all entries of all parameters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import exp, tanh

import torch
from torch import Tensor, nn

from metarun.algorithms.gradient.parameters import Parameters, flatten, unflatten
from metarun.algorithms.gradient.pieces import Rule, State
from metarun.types import Fraction, Positive, Rate


class LSTMOptimizer(Rule):
    """A coordinatewise LSTM: u = lr m, (m, h') = LSTM(g, h), with a separate hidden state h for each entry.

    Andrychowicz et al. 2016, arXiv:1606.04474, section 2.1. The scale ``lr`` of the output is ``algorithm.inner_lr``.

    Args:
        hidden: Units of each LSTM layer. A linear output layer follows.
        log_range: The p of :func:`log_and_sign`, which preprocesses gradients. ``None``: they are not preprocessed.
    """

    def __init__(self, *, hidden: Sequence[Positive], log_range: Rate | None) -> None:
        super().__init__()
        self.hidden, self.log_range = hidden, log_range
        self.cells = nn.ModuleList(LSTMCell(*sizes) for sizes in pairwise([2 if log_range else 1, *hidden]))
        self.output = nn.Linear(hidden[-1], 1)

    def init(self, parameters: Parameters) -> State:
        values = flatten(parameters)
        zeros = [torch.zeros_like(values)[:, None].expand(-1, width) for width in self.hidden]
        return {f"layer{i}": {"output": zero, "cell": zero} for i, zero in enumerate(zeros)}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        g = flatten(gradients)
        x = log_and_sign(g, self.log_range) if self.log_range else g[:, None]
        new = {}
        for cell, (layer, past) in zip(self.cells, state.items(), strict=True):
            x, kept = cell(x, past["output"], past["cell"])
            new[layer] = {"output": x, "cell": kept}
        return unflatten(self.lr * self.output(x).squeeze(-1), gradients), new

    def extra_repr(self) -> str:
        return f"hidden={list(self.hidden)}, log_range={self.log_range}"


class LSTMCell(nn.Module):
    """An LSTM cell of elementary operations, which have second derivatives and can be batched by vmap.

    1 is added to the bias of the forget gate, as in the authors' library (Jozefowicz et al. 2015).
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs + width, 4 * width)

    def forward(self, x: Tensor, output: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new output and cell state [P, width] for ``x`` [P, inputs] and the previous ones."""
        take, forget, new, give = self.gates(torch.cat([x, output], -1)).chunk(4, -1)
        cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(take) * torch.tanh(new)
        return torch.sigmoid(give) * torch.tanh(cell), cell


def log_and_sign(g: Tensor, p: float) -> Tensor:
    """Preprocess gradients [P] of very different magnitudes into [P, 2] (Andrychowicz et al. 2016, appendix A).

    The result is (log|g| / p, sign g) where |g| >= exp(-p), else (-1, exp(p) g).
    """
    return torch.stack([g.abs().clamp_min(exp(-p)).log() / p, (exp(p) * g).clamp(-1, 1)], -1)


class MLPOptimizer(Rule):
    """A small MLP that weighs each entry's gradient and momenta: u = -lr mean_j exp(c_j) m_j.

    m_0 is the gradient, m_1, ... are its exponential moving averages with ``decays``, and c_0, c_1, ... are the outputs
    of the MLP. It starts close to gradient descent with momentum at the rate ``algorithm.inner_lr``. The inputs are
    those of Metz et al. 2019 (arXiv:1810.10180, appendix A): all m_j divided by the root mean square r of the tensor's
    gradient, log r, and tanh(k / t) of the step k for t = 10, 100, 1000. (Their outputs are a direction and a length.)

    Args:
        hidden: Units of each hidden layer.
        decays: Decay of each moving average.
    """

    def __init__(self, *, hidden: Sequence[Positive], decays: Sequence[Fraction]) -> None:
        super().__init__()
        self.hidden, self.decays = hidden, decays
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([1 + len(decays) + 1 + 3, *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 1 + len(decays)))

    def init(self, parameters: Parameters) -> State:
        return {str(i): {name: torch.zeros_like(p) for name, p in parameters.items()} for i in range(len(self.decays))}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        state = {
            str(i): {name: decay * state[str(i)][name] + (1 - decay) * g for name, g in gradients.items()}
            for i, decay in enumerate(self.decays)
        }
        moments = [torch.stack([m[name].flatten() for m in (gradients, *state.values())], -1) for name in gradients]
        weights = self.layers(torch.cat([self.inputs(each, step) for each in moments])).exp()
        return unflatten(-self.lr * (weights * torch.cat(moments)).mean(-1), gradients), state

    def inputs(self, moments: Tensor, step: int) -> Tensor:
        """Return the MLP's inputs [P, inputs] for the gradient and moving averages ``moments`` [P, M] of a tensor."""
        size = moments[:, :1].square().mean(0, keepdim=True).clamp_min(SMALLEST**2).sqrt()
        times = [torch.full_like(moments[:, :1], tanh(step / t)) for t in (10, 100, 1000)]
        return torch.cat([moments / size, size.log().expand_as(moments[:, :1]), *times], -1)

    def extra_repr(self) -> str:
        return f"hidden={list(self.hidden)}, decays={list(self.decays)}"


SMALLEST = 1e-8
"""Lower bound of the root mean square of a tensor's gradient."""
