"""Bag of hashed word and character n-grams: TF-IDF with learned weights and a learned metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar
from zlib import crc32

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models import tokens
from metarun.types import Fraction, Positive, Rate


class NgramBag(nn.Module):
    """Random projection of TF-IDF with a learned weight for each n-gram and a learned low-rank metric.

    Maps n-gram ids [N, L], 0 for padding, to features [N, dim + rank]. Each n-gram of a text is hashed to one of
    ``buckets``. N-gram b has the weight ``exp(weight[b]) * idf[b] ** power``, with idf from the meta-train texts,
    ``weight`` initially 0 and ``power`` initially 1. With ``counts`` it is multiplied by the number of occurrences, as
    in TF-IDF, which matters in long texts. The weights of a text are scaled to length 1 and projected to ``dim``
    numbers by a count sketch (Weinberger et al. 2009, arXiv:0902.2206): each n-gram goes to one number with a random
    sign. This preserves inner products in expectation, also for n-grams that do not occur in meta-training.

    The projection is concatenated with ``rank`` learned directions A of it, which are small at first. The squared
    distance of two texts whose projections differ by d is then ``|d|^2 + |A d|^2``. All features are multiplied by a
    learned scale, the sharpness of a softmax over distances.

    Args:
        texts: Meta-train texts.
        words: Length of the longest n-gram of words.
        chars: Lengths of the shortest and the longest n-gram of characters inside words; ``None`` for none.
        max_ngrams: Maximum number of distinct n-grams of a text. With ``counts`` the most frequent ones are kept, else
            the first ones.
        buckets: Number of hash buckets, at least ``2 * dim``.
        dim: Size of the projection.
        rank: Number of learned directions.
        dropout: Dropout rate of the projection before A, against memorisation of the meta-train classes.
        scale: Initial value of the learned scale.
        counts: If true, weights are multiplied by the number of occurrences.

    Raises:
        UserError: ``chars``, ``buckets`` or ``dropout`` is out of range.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text",)
    role: ClassVar[str] = "features"
    log_idf: Tensor

    def __init__(
        self,
        texts: Sequence[str],
        *,
        words: Positive,
        chars: Sequence[Positive] | None,
        max_ngrams: Positive,
        buckets: Positive,
        dim: Positive,
        rank: Positive,
        dropout: Fraction,
        scale: Rate,
        counts: bool = False,
    ) -> None:
        super().__init__()
        require(
            chars is None or (len(chars) == 2 and chars[0] <= chars[1]),
            f"model.chars={list(chars or ())}: must be the lengths of the shortest and the longest n-gram of "
            "characters, such as [2, 4], or null for none",
        )
        require(
            buckets >= 2 * dim,
            f"model.buckets={buckets} must be at least twice model.dim={dim}",
        )
        require(dropout < 1, "model.dropout=1: must be less than 1")
        self.longest, self.chars, self.max_ngrams = words, chars and (chars[0], chars[1]), max_ngrams
        self.buckets, self.dim, self.counts = buckets, dim, counts
        texts_with = torch.bincount((self.encode(texts) % buckets).flatten(), minlength=buckets)
        texts_with[0] = 0  # padding
        idf = torch.log((1 + len(texts)) / (1.0 + texts_with)) + 1
        self.register_buffer("log_idf", idf.log().to(torch.get_default_dtype()))
        self.weight = nn.Parameter(torch.zeros(buckets))
        self.power = nn.Parameter(torch.ones(()))
        self.directions = nn.Parameter(0.1 / rank**0.5 * torch.randn(dim, rank))
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.dropout = nn.Dropout(dropout)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the ids of the distinct n-grams of texts, at most ``max_ngrams`` each, int32 [N, L], padded with 0.

        With ``counts``, ``buckets`` times the number of further occurrences is added to an id, as far as int32 allows.
        """
        by_word: dict[str, list[int]] = {}  # words recur, so the n-grams of each one are hashed once

        def bucket(kind: str, gram: str) -> int:
            return 1 + crc32((kind + gram).encode()) % (self.buckets - 1)

        def ids_of_word(word: str) -> list[int]:
            if word not in by_word:
                inside = [bucket("c", gram) for gram in tokens.char_ngrams(word, *self.chars)] if self.chars else []
                by_word[word] = [bucket("w", word), *inside]
            return by_word[word]

        rows, most = [], (2**31 - 1) // self.buckets - 1
        for text in texts:
            split = tokens.words(text)
            found = Counter(i for word in split for i in ids_of_word(word))
            if self.longest > 1:
                found.update(bucket("w", g) for g in tokens.word_ngrams(split, self.longest) if " " in g)
            if self.counts:
                kept = found.most_common(self.max_ngrams) if len(found) > self.max_ngrams else found.items()
                rows.append([i + self.buckets * min(count - 1, most) for i, count in kept])
            else:
                rows.append(list(found)[: self.max_ngrams])
        return tokens.pad(rows)

    def example(self) -> Tensor:
        """Return an example input, [2, 1]."""
        return torch.ones(2, 1, dtype=torch.int32, device=self.weight.device)

    def forward(self, ids: Tensor) -> Tensor:
        index, further = ids.long() % self.buckets, ids.long() // self.buckets  # further is 0 without counts
        weights = (self.weight[index] + self.power * self.log_idf[index]).exp() * ((index > 0) * (1 + further))
        # The constant keeps a text without n-grams at zero, and the gradient of the root finite there.
        weights = weights * torch.rsqrt(weights.square().sum(1, keepdim=True) + 1e-12)
        # The id is a hash. It determines the position and, by the parity of the quotient, the sign.
        position, sign = index % self.dim, 1 - 2 * (index // self.dim % 2)
        sketch = weights.new_zeros(len(ids), self.dim).scatter_add(1, position, weights * sign)
        learned = self.dropout(sketch) @ self.directions
        return torch.cat([sketch, learned], dim=1) * self.log_scale.exp()
