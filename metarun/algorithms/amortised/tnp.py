"""Transformer neural processes: a transformer whose tokens are context pairs and target inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.amortised.neural_process import Gaussian, Predictive, PredictiveProcess, log_density, mlp
from metarun.algorithms.amortised.sequence import embedded
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, dry_run
from metarun.errors import require
from metarun.models.attention import Block
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, NonNegative, Positive, Rate


class TransformerNeuralProcess(PredictiveProcess):
    """The transformer neural process (Nguyen & Grover 2022, arXiv:2207.04179, section 3), TNP-D or TNP-A.

    An MLP embeds each context pair and each target input as a token. Context tokens attend to each other, target tokens
    to the context alone; without positions, the order of the context does not matter. The loss is the mean negative log
    likelihood of the targets.

    **Diagonal** (TNP-D): targets are independent given the context. **Autoregressive** (TNP-A): each target knows the
    values of the targets before it, so that the likelihood of all is a product of conditionals, and depends on their
    order. Its values are tokens too, which later targets attend to. A prediction at a point alone, and the squared
    error, are given the context only.

    Blocks are pre-norm, with GELU and MLPs of 4 ``width`` units (the authors': post-norm, ReLU, 2 ``width``). A third
    input tells whether a token's y is known. The standard deviation is ``min_std`` + (1 - ``min_std``) softplus.
    ``model`` embeds x [T, N, ...].

    Args:
        model: Embeds inputs.
        spec: The task family.
        width: Size of a token.
        layers: Number of blocks.
        heads: Number of attention heads.
        embedding_layers: Linear layers of the MLP that makes tokens.
        autoregressive: True for TNP-A, false for TNP-D.
        min_std: Smallest standard deviation that is predicted.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        width: Positive,
        layers: Count,
        heads: Positive,
        embedding_layers: Positive,
        autoregressive: bool,
        min_std: NonNegative,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        require(width % heads == 0, f"algorithm.width={width} cannot be shared out among algorithm.heads={heads}")
        self.model, self.spec = model, spec
        self.autoregressive, self.min_std = autoregressive, min_std
        self.train_shot, self.train_query = train_shot, train_query
        inputs, outputs = dry_run(model, spec).shape[-1], spec.output_size
        self.embed = mlp(inputs + outputs + 1, *[width] * embedding_layers)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), mlp(width, 2 * width, 2 * outputs))
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        mean, std = self.given_earlier(batch.support, batch.query)
        nll = -log_density(mean, std, batch.query.y).mean()
        metrics = {"loss": nll, "nll": nll, "mse": (mean[0] - batch.query.y).square().mean()}
        return nll, {name: value.detach() for name, value in metrics.items()}

    def predictive(self, support: Labelled) -> Callable[[Tensor], Gaussian]:
        return lambda x: self._read(support, x, None)

    def given_earlier(self, support: Labelled, query: Labelled) -> Gaussian:
        """Predict each query point given the context and, if autoregressive, the query points before it.

        Returns:
            Mean and standard deviation, both [1, T, M, D].
        """
        return self._read(support, query.x, query.y if self.autoregressive else None)

    def query_metrics(self, learner: Adapted, query: Labelled) -> Metrics:
        metrics = super().query_metrics(learner, query)
        if not self.autoregressive:
            return metrics
        assert isinstance(learner, Predictive)
        points, known = query.y.shape[1], learner.context.y.shape[1]
        joint = -log_density(*self.given_earlier(learner.context, query), query.y).sum(-1)[0]
        of_context = metrics["nll_with_context"] * (points + known) - metrics["nll_sum"]
        return {
            **metrics,
            "nll": joint / points,
            "nll_sum": joint,
            "nll_with_context": (of_context + joint) / (points + known),
        }

    def _read(self, support: Labelled, x: Tensor, y: Tensor | None) -> Gaussian:
        """Predict at ``x`` [T, M, ...] from the context and, for each point, the values ``y`` of those before it."""
        x, context = embedded(self.model, x), embedded(self.model, support.x)
        count, asked = context.shape[1], x.shape[1]
        order = torch.arange(asked, device=x.device)
        tokens, reach = [token(context, support.y)], [torch.full((count,), count, device=x.device)]
        if y is not None:
            tokens.append(token(x, y))
            reach.append(count + 1 + order)
        tokens.append(token(x, None, support.y.shape[-1]))
        reach.append(count + (0 * order if y is None else order))
        read = self.embed(torch.cat(tokens, 1))
        # Each token attends to the first few pairs, and questions are behind all pairs, so that none is attended to.
        mask = torch.arange(read.shape[1], device=x.device) < torch.cat(reach)[:, None]
        for block in self.blocks:
            read = block(read, mask)
        mean, raw = self.head(read[:, -asked:]).chunk(2, -1)
        return mean[None], self.min_std + (1 - self.min_std) * F.softplus(raw)[None]

    def protocol(self) -> dict[str, Any]:
        return {"likelihood": "autoregressive" if self.autoregressive else "independent given the context"}


def token(x: Tensor, y: Tensor | None, outputs: int = 0) -> Tensor:
    """Return [x, y, 1] for pairs and [x, 0, 0] for questions about ``outputs`` values."""
    if y is None:
        return F.pad(x, (0, outputs + 1))
    return torch.cat([x, y, torch.ones_like(y[..., :1])], -1)
