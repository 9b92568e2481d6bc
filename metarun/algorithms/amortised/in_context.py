"""In-context learning: a transformer reads labelled examples and predicts the next label in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.amortised.sequence import embedded, encode_targets, mean_loss, shuffled
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, dry_run, prediction_metrics
from metarun.errors import require
from metarun.models.attention import Block
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, Fraction, Positive, Rate


class InContext(SupervisedAlgorithm):
    """In-context learning (Garg et al. 2022, arXiv:2208.01066, equation 3; few-shot classes: Kirsch et al. 2022).

    The loss is the mean over all context lengths: x_i is predicted from the pairs (x_1, y_1) .. (x_i-1, y_i-1), and
    query examples from all pairs. A pair is one token, E_x(x) + E_y(y). A question is another, E_x(x) + e. A pair
    attends to itself and earlier pairs, a question to earlier pairs and itself. (Garg et al. use separate, alternating
    tokens for x_i and y_i with learned positions. Without positions, contexts at test may be longer than in
    meta-training.) The transformer has ``layers`` pre-norm blocks with ``heads`` heads and an MLP of 4 ``width`` units.

    Regression is evaluated after each number of examples, from 0 to all. Classification is evaluated after all
    examples, in a random order. As in general-purpose in-context learning (Kirsch et al. 2022, arXiv:2212.04458,
    section 3.2), a fraction ``project`` of meta-training tasks multiplies its embedded inputs by a random matrix of its
    own with entries N(0, 1 / features). Labels are assigned to classes at random in every episode. ``model`` embeds x.
    """

    any_way = False

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        width: Positive,
        layers: Positive,
        heads: Positive,
        project: Fraction,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        require(width % heads == 0, f"algorithm.width={width} cannot be shared out among algorithm.heads={heads}")
        self.model, self.spec, self.project = model, spec, project
        self.train_shot, self.train_query = train_shot, train_query
        self.inputs = nn.Linear(dry_run(model, spec).shape[-1], width)
        self.labels = nn.Linear(spec.output_size, width)
        self.question = nn.Parameter(torch.randn(width) / width**0.5)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, spec.output_size))
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        support = self._in_order(batch.support)
        count, asked = support.y.shape[1], batch.query.y.shape[1]
        x = self._projected(embedded(self.model, torch.cat([support.x, batch.query.x], 1)))
        # x_i is asked before pair i is seen, the query examples after all pairs.
        before = torch.arange(count + asked, device=x.device).clamp(max=count)
        predicted = self.read(x[:, :count], support.y, x, before)
        y = torch.cat([support.y, batch.query.y], 1)
        loss, query = mean_loss(self.spec, predicted, y), predicted[:, count:]
        metrics = {name: value.mean() for name, value in prediction_metrics(self.spec, query, batch.query.y).items()}
        return loss, {name: value.detach() for name, value in {**metrics, "loss": loss}.items()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        support = self._in_order(support)
        x, count = embedded(self.model, support.x), support.y.shape[1]
        for seen in range(count + 1) if self.spec.kind == "regression" else [count]:
            yield (
                lambda query, seen=seen: self.read(  # type: ignore[misc]
                    x[:, :seen],
                    support.y[:, :seen],
                    embedded(self.model, query),
                    torch.full((query.shape[1],), seen, device=query.device),
                )
            )

    def read(self, x: Tensor, y: Tensor, asked: Tensor, before: Tensor) -> Tensor:
        """Predict at ``asked`` [T, M, F] from the first ``before`` [M] of N pairs each; return [T, M, outputs]."""
        count, places = x.shape[1], torch.arange(x.shape[1] + asked.shape[1], device=x.device)
        reach = torch.cat([places[:count] + 1, before])
        # The attention mask: each token sees itself, a pair the earlier pairs, a question the pairs before it.
        seen = (places[None] == places[:, None]) | ((places < count)[None] & (places[None] < reach[:, None]))
        pairs = self.inputs(x) + self.labels(encode_targets(self.spec, y, x.dtype))
        tokens = torch.cat([pairs, self.inputs(asked) + self.question], 1)
        for block in self.blocks:
            tokens = block(tokens, seen)
        return self.head(tokens[:, count:])

    def _in_order(self, examples: Labelled) -> Labelled:
        return shuffled(examples) if self.spec.kind == "classification" else examples

    def _projected(self, x: Tensor) -> Tensor:
        if not self.project:
            return x
        tasks, _, size = x.shape
        matrices = torch.randn(tasks, size, size, dtype=x.dtype, device=x.device) / size**0.5
        chosen = torch.rand(tasks, 1, 1, device=x.device) < self.project
        return torch.where(chosen, x @ matrices, x)

    def protocol(self) -> dict[str, Any]:
        return {"norm": "running"}
