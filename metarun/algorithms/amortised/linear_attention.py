"""Linear self-attention on examples, which can take steps of gradient descent, and those steps themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.amortised.sequence import embedded, mean_loss
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, dry_run
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, NonNegative, Positive, Rate


class Reader(SupervisedAlgorithm):
    """The base class of learners that read a support set and predict queries from it, trained on the query error.

    A subclass implements :meth:`read`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("regression",)

    @abstractmethod
    def read(self, support: Labelled, x: Tensor) -> Tensor:
        """Predict at queries.

        Args:
            support: Support sets with embedded inputs: x [T, N, F], y [T, N, D].
            x: Embedded queries, [T, M, F].

        Returns:
            Predictions, [T, M, D].
        """

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        loss = mean_loss(self.spec, self.adapt(batch.support)(batch.query.x), batch.query.y)
        return loss, {"loss": loss.detach()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        known = Labelled(embedded(self.model, support.x), support.y)
        yield lambda query: self.read(known, embedded(self.model, query))


class LinearAttention(Reader):
    """Self-attention without softmax (von Oswald et al. 2023, arXiv:2212.07677, section 3).

    Tokens are pairs e_i = (x_i, y_i), and (x, 0) for a query. Each layer adds to every token e

        sum_h P_h (1 / N) sum_i e_i (e_i . Q_h e)

    over the N pairs. The prediction is the y of the query's last token. One layer with one head can take one step of
    gradient descent on the squared error of a linear map that starts at 0 (proposition 1).

    Args:
        model: Embeds inputs. :class:`Linear` leaves vectors as they are.
        spec: The task family.
        layers: Number of layers.
        heads: Number of heads, h.
        init: Standard deviation of the initial entries of P and Q.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        layers: Positive,
        heads: Positive,
        init: NonNegative,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.train_shot, self.train_query = train_shot, train_query
        size = dry_run(model, spec).shape[-1] + spec.output_size
        self.asked = nn.Parameter(init * torch.randn(layers, heads, size, size))
        self.out = nn.Parameter(init * torch.randn(layers, heads, size, size))
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def read(self, support: Labelled, x: Tensor) -> Tensor:
        outputs, count = support.y.shape[-1], support.x.shape[1]
        pairs = torch.cat([support.x, support.y], -1)
        tokens = torch.cat([pairs, torch.cat([x, x.new_zeros(*x.shape[:2], outputs)], -1)], 1)
        for asked, out in zip(self.asked, self.out, strict=True):
            pairs = tokens[:, :count]
            moments = pairs.transpose(1, 2) @ pairs / count
            tokens = tokens + sum(tokens @ Q.T @ moments @ P.T for Q, P in zip(asked, out, strict=True))
        return tokens[:, count:, -outputs:]


class GradientDescent(Reader):
    """Gradient descent on a linear map from 0, with learned step sizes: what linear attention is compared with.

    Each step subtracts ``rate`` times the gradient of the squared error (1 / 2 N) sum_i |W x_i - y_i|^2.

    Args:
        model: Embeds inputs. :class:`Linear` leaves vectors as they are.
        spec: The task family.
        steps: Number of steps.
        rate: Initial step size of each.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        steps: Positive,
        rate: Rate,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.train_shot, self.train_query = train_shot, train_query
        self.rates = nn.Parameter(torch.full((steps,), rate))
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def read(self, support: Labelled, x: Tensor) -> Tensor:
        W = support.x.new_zeros(len(x), x.shape[-1], support.y.shape[-1])
        for rate in self.rates:
            W = W - rate * support.x.transpose(1, 2) @ (support.x @ W - support.y) / support.x.shape[1]
        return x @ W
