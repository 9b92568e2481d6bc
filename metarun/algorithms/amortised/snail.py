"""SNAIL: dilated causal convolutions and causal attention over a sequence of labelled examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.amortised.sequence import embedded, encode_targets, mean_loss, shuffled
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, dry_run, prediction_metrics
from metarun.errors import require
from metarun.models.snail_blocks import Attention, TemporalConvolutions
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, Positive, Rate


class Snail(SupervisedAlgorithm):
    """A simple neural attentive meta-learner (Mishra et al. 2018, arXiv:1707.03141, sections 3 and 5.1).

    The sequence is the support set in a random order, each embedded example concatenated with its label, followed by
    one query example without a label. The output at the last position is the prediction, whose loss is the outer loss.
    Attention blocks (figure 2b, of ``keys`` and ``values`` units) alternate with temporal-convolution blocks (figure
    2c: dense blocks of ``filters`` filters with dilations 1, 2, 4, .. up to ``span`` examples). ``model`` embeds x.
    """

    any_way = False

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        keys: Sequence[Positive],
        values: Sequence[Positive],
        filters: Positive,
        span: Positive,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        require(
            0 < len(keys) == len(values),
            f"algorithm.keys={[*keys]} and algorithm.values={[*values]}: one entry for each attention block is needed",
        )
        self.model, self.spec = model, spec
        self.train_shot, self.train_query = train_shot, train_query
        channels = dry_run(model, spec).shape[-1] + spec.output_size
        blocks: list[nn.Module] = []
        for at, (key, value) in enumerate(zip(keys, values, strict=True)):
            if at:
                convolutions = TemporalConvolutions(channels, span, filters)
                blocks.append(convolutions)
                channels = convolutions.channels
            blocks.append(Attention(channels, key, value))
            channels += value
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, spec.output_size)
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        support = shuffled(batch.support)
        x = embedded(self.model, torch.cat([support.x, batch.query.x], 1))
        predicted = self.read(x[:, : support.y.shape[1]], support.y, x[:, support.y.shape[1] :])
        loss = mean_loss(self.spec, predicted, batch.query.y)
        metrics = {
            name: value.mean() for name, value in prediction_metrics(self.spec, predicted, batch.query.y).items()
        }
        return loss, {name: value.detach() for name, value in {**metrics, "loss": loss}.items()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        support = shuffled(support)
        x = embedded(self.model, support.x)
        yield lambda query: self.read(x, support.y, embedded(self.model, query))

    def read(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Predict at embedded ``query`` [T, M, F] given the examples x [T, N, F], y [T, N]; return [T, M, outputs]."""
        asked = torch.cat([query, query.new_zeros(*query.shape[:2], self.spec.output_size)], -1)
        pairs = torch.cat([x, encode_targets(self.spec, y, x.dtype)], -1)
        # A sequence for each query: [T, M, N + 1, F + outputs].
        whole = torch.cat([pairs[:, None].expand(-1, query.shape[1], -1, -1), asked[:, :, None]], 2)
        read = self.blocks(whole.flatten(0, 1))[:, -1]
        return self.head(read).view(*query.shape[:2], -1)

    def protocol(self) -> dict[str, Any]:
        return {"norm": "running"}
