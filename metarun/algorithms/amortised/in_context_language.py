"""In-context language learning: a transformer reads example strings of a language and predicts the next symbol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.amortised.language import LanguageLearner, histories, string_loss
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, dry_run
from metarun.errors import require
from metarun.models.attention import Block
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, Positive, Rate


class InContextLanguage(LanguageLearner):
    """In-context language learning by a decoder (Akyürek et al. 2024, arXiv:2401.12973).

    The strings of a task are concatenated, each with its begin marker, and each token attends to earlier tokens. The
    loss is the mean over all positions of all strings, including the first. The transformer has ``layers`` pre-norm
    blocks of ``heads`` heads with rotary positions (Su et al. 2021, arXiv:2104.09864). Before the first block, each n
    of ``ngrams`` adds one of the paper's n-gram heads: token i receives a linear map of the mean of the earlier tokens
    that follow the same n symbols as the last n up to i. Its weights are learned; its attention pattern is fixed.
    ``model`` embeds symbols.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        width: Positive,
        layers: Positive,
        heads: Positive,
        ngrams: Sequence[Count],
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        require(
            width % (2 * heads) == 0,
            f"algorithm.width={width} cannot be shared out among algorithm.heads={heads} in pairs of numbers",
        )
        self.model, self.spec, self.heads, self.ngrams = model, spec, heads, tuple(ngrams)
        self.train_shot, self.train_query = train_shot, train_query
        self.inputs = nn.Linear(dry_run(model, spec).shape[-1], width)
        self.matched = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in self.ngrams)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, spec.output_size))
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        x, y = (torch.cat(pair, 1) for pair in ((batch.support.x, batch.query.x), (batch.support.y, batch.query.y)))
        loss = string_loss(self.read(x[:, :0], y[:, :0], x, y), y)
        return loss, {"loss": loss.detach()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        for seen in range(support.x.shape[1] + 1):
            yield partial(self.read, support.x[:, :seen], support.y[:, :seen])

    def adapt(self, support: Labelled) -> Adapted:
        return partial(self.read, support.x, support.y)

    def read(self, x: Tensor, y: Tensor, asked: Tensor, answers: Tensor | None = None) -> Tensor:
        """Return log-probabilities [T, M, L, symbols] of the next symbol at each position of ``asked`` [T, M, L].

        Args:
            x: Support strings [T, N, L].
            y: Their next symbols [T, N, L].
            asked: Query strings. Each attends to the support strings and itself.
            answers: Next symbols of the query strings. If given, each query string also attends to those before it.
        """
        end = self.spec.output_size + 1
        # The last symbol of the longest strings is in y alone: L + 1 places hold whole strings.
        last = torch.full_like(asked[..., :1], end) if answers is None else _symbols(answers[..., -1:], end)
        strings = torch.cat([torch.cat([x, _symbols(y[..., -1:], end)], -1), torch.cat([asked, last], -1)], 1)
        tasks, count, length = strings.shape
        there = strings != end
        number = torch.arange(count, device=x.device)
        # Each string attends to earlier strings. Query strings attend to each other only if their answers are given.
        before = number[None] < number[:, None]
        if answers is None:
            before = before & (number < x.shape[1])
        own = (number[None] == number[:, None])[:, None, :, None]
        step = torch.arange(length, device=x.device)
        causal = (step[None] <= step[:, None])[None, :, None, :]
        earlier = (before[:, None, :, None] | (own & causal)).view(1, count * length, count * length)
        itself = torch.eye(count * length, dtype=torch.bool, device=x.device)
        seen = (earlier & there.flatten(1)[:, None]) | itself
        # Padding has no position: positions count the symbols of all strings that a string attends to.
        sizes = there.sum(-1)
        start = (sizes[:, None, :] * before).sum(-1)
        place = (start[..., None] + step).flatten(1)
        tokens = self.inputs(self.model(strings.flatten(0, 1))).view(tasks, count * length, -1)
        if self.ngrams:
            tokens = tokens + self.looked_up(tokens, strings, seen & ~itself)
        turn = partial(rotated, place=place, heads=self.heads)
        for block in self.blocks:
            tokens = block(tokens, seen[:, None], turn)
        tokens = tokens.view(tasks, count, length, -1)[:, x.shape[1] :, :-1]
        return self.head(tokens).log_softmax(-1)

    def looked_up(self, tokens: Tensor, strings: Tensor, earlier: Tensor) -> Tensor:
        """Return the sum of the outputs of the n-gram heads, [T, M, width]."""
        total = torch.zeros_like(tokens)
        beginning = self.spec.output_size
        for size, weigh in zip(self.ngrams, self.matched, strict=True):
            code = histories(strings, size, beginning)
            # The history before each token. A begin marker has none.
            previous = F.pad(code[..., :-1], (1, 0), value=-1).flatten(1)
            same = (earlier & (code.flatten(1)[:, :, None] == previous[:, None])).to(tokens.dtype)
            total = total + weigh(same @ tokens / same.sum(-1, keepdim=True).clamp(min=1))
        return total

    def protocol(self) -> dict[str, Any]:
        return {"norm": "running"}


def _symbols(y: Tensor, end: int) -> Tensor:
    return torch.where(y < 0, end, y)


def rotated(values: Tensor, place: Tensor, heads: int) -> Tensor:
    """Apply rotary position embeddings to ``values`` [T, M, W] at the positions ``place`` [T, M].

    Inner products of rotated queries and keys depend on relative positions only (Su et al. 2021, equation 34).
    """
    size = values.shape[-1] // heads // 2
    rates = 10000.0 ** (-torch.arange(size, device=values.device, dtype=values.dtype) / size)
    angles = place[..., None, None] * rates  # [T, M, 1, size]
    cos, sin = angles.cos(), angles.sin()
    a, b = values.unflatten(-1, (heads, 2, size)).unbind(-2)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -2).flatten(2)
