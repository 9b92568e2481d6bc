"""Few-shot generation by a flow: noise is carried to images by a velocity field that a set of examples conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.generative.base import Generative, of_task, sets
from metarun.algorithms.supervised import Adapted
from metarun.errors import require
from metarun.models.roles import Denoiser
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, Fraction, NonNegative, Positive, Rate


class Flow(Generative):
    """Variational flow matching (Eijkelboom et al. 2024, arXiv:2406.04843, sections 3 and 4), conditioned on a set.

    The path from noise x0 ~ N(0, I) to an image x1 in -1..1 is x_t = (1 - t) x0 + t x1. The model predicts the mean of
    x1 given x_t and the support set of the class, pixel by pixel, as a logit. It is trained by cross-entropy, which is
    the likelihood of binary pixels and is minimal at the mean for grey ones. The velocity field follows from the mean,
    v = (E[x1 | x_t] - x_t) / (1 - t) (equation 7; Lipman et al. 2023, arXiv:2210.02747). It is integrated by ``steps``
    Euler steps, of which the last ends at E[x1 | x_t].

    The log-likelihood ratio of a binary pixel given x_t alone, 2 t x_t / (1 - t)^2 by Bayes' rule, is added to the
    model's logit, clipped to +-``evidence``. In meta-training the logit of t is N(``time_mean``, ``time_std``) (Esser
    et al. 2024, arXiv:2403.03206, section 3.1). Generation takes its steps at the quantiles of this distribution. Each
    support set of meta-training is cut to a random number of images, and to none with probability ``drop``. This allows
    classifier-free guidance, l + ``guidance`` (l - l without) (Ho & Salimans 2022, arXiv:2207.12598, equation 6), which
    doubles the cost of generation.
    """

    model: Denoiser  # type: ignore[assignment]

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        steps: Positive,
        evidence: NonNegative,
        time_mean: float,
        time_std: Rate,
        drop: Fraction,
        guidance: NonNegative,
        train_way: Positive | None,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        self.model = cast("Denoiser", model)
        self.spec, self.steps, self.evidence = spec, steps, evidence
        self.time_mean, self.time_std, self.drop, self.guidance = time_mean, time_std, drop, guidance
        require(drop > 0 or guidance == 0, f"algorithm.guidance={guidance} needs algorithm.drop above 0")
        self.train_way, self.train_shot, self.train_query = train_way, train_shot, train_query
        self.learn_with(outer_lr, decay_over=decay_over, decay=decay)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        shown, way = sets(batch.support), batch.support.way
        number, shot = shown.shape[:2]
        count = 1 + torch.rand(number, 1, device=shown.device, dtype=shown.dtype).mul(shot).floor()
        count = count * (torch.rand_like(count) >= self.drop)
        counts = (torch.arange(shot, device=shown.device) < count).to(shown.dtype)
        context = self.model.read(2 * shown - 1, counts)
        y, index = batch.query.y.flatten(0, 1), of_task(batch.query.x, way)
        t = torch.sigmoid(self.time_mean + self.time_std * torch.randn_like(y[:, 0, 0, 0]))
        at = t[:, None, None, None]
        x = (1 - at) * torch.randn_like(y) + at * (2 * y - 1)
        loss = F.binary_cross_entropy_with_logits(self.logits(x, t, tuple(c[index] for c in context)), y)
        return loss, {"loss": loss.detach()}

    def logits(self, x: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Logits of E[(x1 + 1) / 2 | x_t], pixel by pixel: x [N, C, H, W], t [N], a context of N sets."""
        at = t[:, None, None, None]
        alone = (2 * at * x / (1 - at).square().clamp(min=1e-6)).clamp(-self.evidence, self.evidence)
        return self.model(x, t, context) + alone

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        shown = 2 * sets(support) - 1
        every = torch.ones_like(shown[:, :, 0, 0, 0])
        counts = [every] if self.guidance == 0 else [every, torch.zeros_like(every)]
        contexts = [self.model.read(shown, c) for c in counts]

        def made(classes: Tensor) -> Tensor:
            index = of_task(classes, support.way)
            noise = torch.randn(len(index), *shown.shape[2:], dtype=shown.dtype, device=shown.device)
            return self.carried(noise, [tuple(c[index] for c in context) for context in contexts]).unflatten(
                0, classes.shape
            )

        yield made

    def carried(self, x: Tensor, contexts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """Noise [N, C, H, W] to images in 0..1, by the context of N sets and, under guidance, that of none."""
        times = self.times(x)
        mean = x
        for now, then in pairwise(times):
            logits, *without = (self.logits(x, now.expand(len(x)), context) for context in contexts)
            for other in without:
                logits = logits + self.guidance * (logits - other)
            mean = 2 * torch.sigmoid(logits) - 1
            x = x + (then - now) / (1 - now) * (mean - x)
        return (mean + 1) / 2

    def times(self, like: Tensor) -> Tensor:
        """From 0 to 1, [steps + 1]."""
        u = torch.linspace(0, 1, self.steps + 1, dtype=like.dtype, device=like.device)
        return torch.sigmoid(self.time_mean + self.time_std * sqrt(2) * torch.erfinv(2 * u - 1))

    def protocol(self) -> dict[str, Any]:
        return {"generation_steps": self.steps, "guidance": self.guidance}
