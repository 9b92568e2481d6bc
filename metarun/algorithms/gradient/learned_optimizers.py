"""Learned optimizers: update rules computed by a small network that is shared by all entries of all parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import exp, log, tanh
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metarun.algorithms.gradient.parameters import Parameters, flatten, unflatten
from metarun.algorithms.gradient.pieces import Rule, State
from metarun.tasks.to_device import to_device
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


class FactoredMLPOptimizer(Rule):
    """A small MLP that corrects Adam's direction from factored statistics: u = -lr exp(c) (a + sign(a) b).

    a is Adam's direction, m / (sqrt(v) + eps) without bias, and b and c are the outputs of the MLP, which start at 0.
    Inputs are those of small_fc_lopt (Metz et al. 2022, arXiv:2203.11860, appendix), but for the parameter itself: for
    each entry the gradient g, its moving averages m_j with ``decays``, g and m_j divided by sqrt(v) with the second
    moment v, and g and m_j divided by the root of Adafactor's factored second moment (Shazeer & Stern 2018,
    arXiv:1804.04235), each divided by its root mean square over the tensor and multiplied by sign(a). For the tensor:
    log of the ratios of the sizes of m_j and g, log of the scale of its initial values, of its number of entries and of
    its rows, its number of dimensions. For the step k: tanh(k / t) for t = 10, 100, 1000.

    An entry whose gradients change sign has its update change sign, so that no layer can drift as a whole whatever its
    gradient. Inputs do not depend on the scale of the loss. State: an entry has 1 + ``len(decays)`` numbers, a row and
    a column of a tensor one each.

    Args:
        hidden: Units of each hidden layer.
        decays: Decays of the moving averages of the gradient. The second one (or the only one) is Adam's.
        second: Decay of second moments, whole and factored.
    """

    def __init__(self, *, hidden: Sequence[Positive], decays: Sequence[Fraction], second: Fraction) -> None:
        super().__init__()
        self.hidden, self.decays, self.second = hidden, decays, second
        entry, tensor = 3 * (1 + len(decays)), len(decays) + 4 + 3
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([entry + tensor, *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 2))
        for p in self.layers[-1].parameters():
            nn.init.zeros_(p)

    def init(self, parameters: Parameters) -> State:
        zeros = torch.zeros_like(flatten(parameters))
        rows = {name: zeros.new_zeros(matrix(p.shape)[0]) for name, p in parameters.items()}
        columns = {name: zeros.new_zeros(matrix(p.shape)[1]) for name, p in parameters.items()}
        scale = {name: p.square().mean().clamp_min(1e-6).sqrt() for name, p in parameters.items()}
        momenta = {str(i): zeros for i in range(len(self.decays))}
        return {**momenta, "second": zeros, "rows": rows, "columns": columns, "scale": scale}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        g, layout = flatten(gradients), Layout.of(gradients)
        square = g.square()
        new: dict[str, Any] = {"scale": state["scale"]}
        for key, decay, value in (
            *((str(i), d, g) for i, d in enumerate(self.decays)),
            ("second", self.second, square),
        ):
            new[key] = decay * state[key] + (1 - decay) * value
        factors = []
        for key, of, sizes, count in (
            ("rows", layout.row, layout.rows, layout.columns_of_row),
            ("columns", layout.column, layout.columns, layout.rows_of_column),
        ):
            mean = torch.zeros_like(count).index_add(0, of, square) / count
            factors.append(self.second * torch.cat([*state[key].values()]) + (1 - self.second) * mean)
            new[key] = dict(zip(gradients, factors[-1].split(sizes), strict=True))
        share = 1 - self.second ** (step + 1)
        rows, columns = (factor / share for factor in factors)
        whole = torch.zeros_like(layout.numel).index_add(0, layout.tensor_of_row, rows) / layout.rows_of_tensor
        factored = rows[layout.row] * columns[layout.column] / whole.clamp_min(SMALLEST**2)[layout.tensor]
        held = [new[str(i)] / (1 - decay ** (step + 1)) for i, decay in enumerate(self.decays)]
        first = torch.stack([g, *held], -1)
        scaled = first / ((new["second"] / share).sqrt() + SMALLEST)[:, None]
        entry = torch.cat([first, scaled, first / (factored.sqrt() + SMALLEST)[:, None]], -1)
        size = torch.zeros_like(entry[: len(gradients)]).index_add(0, layout.tensor, entry.square())
        size = (size / layout.numel[:, None]).clamp_min(SMALLEST**2).sqrt()
        ratios = (size[:, 1 : first.shape[1]] / size[:, :1]).log()
        scale = torch.stack([*state["scale"].values()]).log()[:, None]
        times = [layout.shape.new_full((len(gradients),), tanh(step / t)) for t in (10, 100, 1000)]
        tensor = torch.cat([ratios, scale, layout.shape, torch.stack(times, -1)], -1)
        adam = scaled[:, min(2, len(held))]
        sign = adam.sign()
        inputs = torch.cat([sign[:, None] * entry / size[layout.tensor], tensor[layout.tensor]], -1)
        b, c = self.layers(inputs).unbind(-1)
        return unflatten(-self.lr * c.exp() * (adam + sign * b), gradients), new

    def extra_repr(self) -> str:
        return f"hidden={list(self.hidden)}, decays={list(self.decays)}, second={self.second}"


class Layout(NamedTuple):
    """The places of the entries of some tensors, one after another in a vector [P], each tensor a matrix.

    Attributes:
        tensor: Number of each entry's tensor, [P].
        row: Number of each entry's row among all rows, [P].
        column: Number of each entry's column among all columns, [P].
        tensor_of_row: Number of each row's tensor.
        rows: Number of rows of each tensor.
        columns: Number of columns of each tensor.
        columns_of_row: Number of columns of each row's tensor.
        rows_of_column: Number of rows of each column's tensor.
        rows_of_tensor: :attr:`rows` as a tensor.
        numel: Number of entries of each tensor.
        shape: Features of each tensor's shape, [tensors, 3].
    """

    tensor: Tensor
    row: Tensor
    column: Tensor
    tensor_of_row: Tensor
    rows: list[int]
    columns: list[int]
    columns_of_row: Tensor
    rows_of_column: Tensor
    rows_of_tensor: Tensor
    numel: Tensor
    shape: Tensor

    @classmethod
    def of(cls, tensors: Parameters) -> Layout:
        """Return the layout of some tensors, which is remembered."""
        first = next(iter(tensors.values()))
        return _layout(tuple(p.shape for p in tensors.values()), first.dtype, first.device)


@lru_cache(maxsize=256)
def _layout(shapes: tuple[torch.Size, ...], dtype: torch.dtype, device: torch.device) -> Layout:
    sizes = [matrix(shape) for shape in shapes]
    rows, columns = [r for r, _ in sizes], [c for _, c in sizes]
    numel, number = [r * c for r, c in sizes], range(len(sizes))
    row_starts, column_starts = np.cumsum([0, *rows]), np.cumsum([0, *columns])
    row = [row_starts[i] + np.arange(numel[i]) // columns[i] for i in number]
    column = [column_starts[i] + np.arange(numel[i]) % columns[i] for i in number]
    shape = [[log(numel[i]) / 4, log(rows[i]) / 4, float(len(shapes[i]))] for i in number]
    indices = (np.repeat(number, numel), np.concatenate(row), np.concatenate(column), np.repeat(number, rows))
    tensor, row_of, column_of, tensor_of_row = (to_device(each, device) for each in indices)
    values = (np.repeat(columns, rows), np.repeat(rows, columns), rows, numel, shape)
    floats = [to_device(np.asarray(each), device, dtype) for each in values]
    return Layout(tensor, row_of, column_of, tensor_of_row, rows, columns, *floats)


def matrix(shape: torch.Size) -> tuple[int, int]:
    """Return the numbers of rows and columns of a tensor as a matrix: its first dimension, and all others."""
    rows = shape[0] if shape else 1
    return rows, shape.numel() // rows
