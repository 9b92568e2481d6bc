"""A bag of hashed word and character n-grams: TF-IDF whose weights and metric are learned."""

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
    """Starts as a random projection of TF-IDF; learns a weight for every n-gram and a low-rank metric.

    A text is the set of its runs of 1..``words`` words and, inside words, of ``chars[0]``..``chars[1]``
    characters (null: of words alone), each hashed to one of ``buckets``. With idf from the meta-train texts, n-gram b
    weighs ``exp(weight[b]) * idf[b] ** power``, where ``weight`` starts at 0 and ``power`` at 1, times its number in
    the text with ``counts``, as TF-IDF has it: in long texts that decides. Of a text of more than ``max_ngrams``, with
    ``counts`` the most frequent are kept, without it the first. The weights of a
    text are scaled to length 1 and projected to ``dim`` numbers, each n-gram to one of them with a random
    sign (a count sketch: Weinberger et al. 2009, arXiv:0902.2206), which keeps inner products on average,
    those of n-grams never seen in meta-training included.

    ``rank`` learned directions of the projection, A, are put beside it, small at first: the squared distance
    of two texts whose projections differ by d is ``|d|^2 + |A d|^2``. ``dropout`` of the projection before A
    keeps it from memorising the meta-train classes. All is multiplied by a learned factor that starts at
    ``scale``, the sharpness of a softmax over distances.

    Ids int [N, L] (0: none) -> [N, dim + rank].
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
            f"model.chars={list(chars or ())}: give the shortest and the longest run of characters, such as [2, 4], or "
            "null for none",
        )
        require(
            buckets >= 2 * dim,
            f"model.buckets={buckets} must be at least twice model.dim={dim}: a bucket names a place and a sign",
        )
        require(dropout < 1, "model.dropout=1 leaves nothing; give less than 1")
        self.longest, self.chars, self.max_ngrams = words, chars and (chars[0], chars[1]), max_ngrams
        self.buckets, self.dim, self.counts = buckets, dim, counts
        held = torch.bincount((self.encode(texts) % buckets).flatten(), minlength=buckets)
        held[0] = 0  # no n-gram, only filling
        idf = torch.log((1 + len(texts)) / (1.0 + held)) + 1
        self.register_buffer("log_idf", idf.log().to(torch.get_default_dtype()))
        self.weight = nn.Parameter(torch.zeros(buckets))
        self.power = nn.Parameter(torch.ones(()))
        self.directions = nn.Parameter(0.1 / rank**0.5 * torch.randn(dim, rank))
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.dropout = nn.Dropout(dropout)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Ids of the distinct n-grams (at most ``max_ngrams``), int32 [N, L], 0 where there are no more.

        With ``counts``, an id plus ``buckets`` times the number of further occurrences, as far as int32 holds them.
        """
        by_word: dict[str, list[int]] = {}  # words recur: each one's characters are hashed once

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
        return torch.ones(2, 1, dtype=torch.int32, device=self.weight.device)

    def forward(self, ids: Tensor) -> Tensor:
        index, further = ids.long() % self.buckets, ids.long() // self.buckets  # 0 further ones without counts
        weights = (self.weight[index] + self.power * self.log_idf[index]).exp() * ((index > 0) * (1 + further))
        # A text without n-grams stays at zero; under the root, so that the gradient there is finite.
        weights = weights * torch.rsqrt(weights.square().sum(1, keepdim=True) + 1e-12)
        # The id, a hash, gives the place and, by the parity of its remaining part, the sign.
        place, sign = index % self.dim, 1 - 2 * (index // self.dim % 2)
        sketch = weights.new_zeros(len(ids), self.dim).scatter_add(1, place, weights * sign)
        learned = self.dropout(sketch) @ self.directions
        return torch.cat([sketch, learned], dim=1) * self.log_scale.exp()
