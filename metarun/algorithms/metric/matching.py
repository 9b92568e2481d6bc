"""Matching Networks: attention over the support set, and its labels averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.metric.head import Head, Similarity, membership, require_narrow
from metarun.algorithms.supervised import Adapted
from metarun.tasks.episode import Labelled, Spec
from metarun.types import Count, Distance, Rate


class Matching(Head):
    """The support labels, averaged by attention (Vinyals et al. 2016, arXiv:1606.04080, equation 1).

    The attention of a query to a support example is the softmax of their similarity: the cosine, in the paper without
    a scale (``scale`` 1, not learned), or minus the squared Euclidean distance. The logits are the logarithms of the
    class probabilities.

    ``context_steps`` > 0: full-context embeddings (appendix A.1 and A.2). Support features g'(x_i) are read in their
    order (by label, then as drawn) by a bidirectional LSTM whose two hidden states are added to them; query features
    f'(x) go through as many steps of an LSTM that attends to the result, each step's hidden state added to f'(x).
    """

    def __init__(self, *, distance: Distance, scale: Rate, learn_scale: bool, context_steps: Count) -> None:
        super().__init__()
        self.similarity, self.context_steps = Similarity(distance, scale, learn_scale), context_steps

    def prepare(self, features: tuple[int, ...], spec: Spec) -> None:
        super().prepare(features, spec)
        if self.context_steps:
            width = require_narrow(features, "full-context embeddings")
            self.forwards, self.backwards = (Cell(width, width) for _ in range(2))
            self.attending = Cell(width, 2 * width)

    def fit(self, support: Labelled) -> Adapted:
        x, member = support.x, membership(support.y, support.way, support.x.dtype)
        if self.context_steps:
            x = self.support_in_context(x)

        def adapted(query: Tensor) -> Tensor:
            if self.context_steps:
                query = self.query_in_context(query, x)
            attention = self.similarity(query, x).log_softmax(-1)
            # The logarithm of a sum over the class's examples; others add exp(-inf) = 0.
            return (attention[:, :, None] + member.log()[:, None]).logsumexp(-1)

        return adapted

    def support_in_context(self, x: Tensor) -> Tensor:
        """g(x_i, S) = g'(x_i) + forward hidden state + backward hidden state, [T, N, F]."""
        ahead, back = (read(cell, x, reverse) for cell, reverse in ((self.forwards, False), (self.backwards, True)))
        return x + ahead + back

    def query_in_context(self, query: Tensor, support: Tensor) -> Tensor:
        """f(x, S): attLSTM(f'(x), g(S), ``context_steps``), [T, Nq, F]."""
        hidden = cell = summary = torch.zeros_like(query)
        for _ in range(self.context_steps):
            out, cell = self.attending(query, torch.cat([hidden, summary], -1), cell)
            hidden = out + query
            summary = (hidden @ support.transpose(1, 2)).softmax(-1) @ support
        return hidden

    def extra_repr(self) -> str:
        return f"context_steps={self.context_steps}"

    def protocol(self) -> dict[str, Any]:
        return {**self.similarity.protocol(), "full_context": bool(self.context_steps)}


class Cell(nn.Module):
    """A step of an LSTM that puts out ``size`` numbers and is fed ``fed`` back: its own output, or more beside it."""

    def __init__(self, size: int, fed: int) -> None:
        super().__init__()
        self.inputs, self.back = nn.Linear(size, 4 * size), nn.Linear(fed, 4 * size, bias=False)

    def forward(self, x: Tensor, back: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Output and cell state, as ``x`` [..., size]."""
        take, forget, new, give = (self.inputs(x) + self.back(back)).chunk(4, -1)
        cell = forget.sigmoid() * cell + take.sigmoid() * new.tanh()
        return give.sigmoid() * cell.tanh(), cell


def read(step: Cell, x: Tensor, reverse: bool) -> Tensor:
    """The outputs of ``step`` run along [T, N, F], or from the end."""
    hidden = cell = torch.zeros_like(x[:, 0])
    outputs = []
    for each in reversed(x.unbind(1)) if reverse else x.unbind(1):
        hidden, cell = step(each, hidden, cell)
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if reverse else outputs, 1)
