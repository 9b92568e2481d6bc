"""TF-IDF features, a baseline for learned text models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.tokens import char_ngrams, pad, word_ngrams, words
from metarun.types import Positive


class TfIdf(nn.Module):
    """Exact TF-IDF of n-grams, L2-normalised, with document frequencies from the meta-train texts.

    Maps n-gram ids [N, L], 0 for padding, to features [N, vocabulary]. The weight of an n-gram is its count in the text
    times ``ln((1 + texts) / (1 + texts that contain it)) + 1``. With ``algorithm=protonet`` and ``runner.iterations=0``
    this is the nearest-prototype baseline.

    Args:
        texts: Meta-train texts.
        unit: ``char`` for n-grams of characters inside words, including a space at each end, or ``word`` for n-grams of
            words.
        shortest: Length of the shortest n-gram.
        longest: Length of the longest n-gram.
        min_texts: Minimum number of meta-train texts that contain an n-gram. Rarer ones are dropped.

    Raises:
        UserError: ``shortest`` exceeds ``longest``, or no n-gram occurs in ``min_texts`` texts.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text",)
    role: ClassVar[str] = "features"
    idf: Tensor

    def __init__(
        self,
        texts: Sequence[str],
        *,
        unit: Literal["char", "word"],
        shortest: Positive,
        longest: Positive,
        min_texts: Positive,
    ) -> None:
        super().__init__()
        require(shortest <= longest, f"model.shortest={shortest} must not exceed model.longest={longest}")
        self.unit, self.shortest, self.longest = unit, shortest, longest
        texts_with = Counter(gram for text in texts for gram in dict.fromkeys(self.grams(text)))
        vocabulary = [gram for gram, count in texts_with.items() if count >= min_texts]
        require(
            bool(vocabulary) or not texts,
            f"model.min_texts={min_texts}: no n-gram is in that many of the {len(texts)} meta-train texts",
        )
        counts = torch.tensor([texts_with[gram] for gram in vocabulary], dtype=torch.get_default_dtype())
        self.register_buffer("idf", torch.log((1 + len(texts)) / (1 + counts)) + 1)
        self.set_extra_state(vocabulary)

    def grams(self, text: str) -> list[str]:
        """Return the n-grams of a text, each as often as it occurs."""
        tokens = words(text)
        if self.unit == "word":
            return [g for g in word_ngrams(tokens, self.longest) if g.count(" ") + 1 >= self.shortest]
        return [gram for word in tokens for gram in char_ngrams(word, self.shortest, self.longest)]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the ids of the known n-grams of texts, with repetitions, int32 [N, L], padded with 0."""
        return pad([[self.ids[gram] for gram in self.grams(text) if gram in self.ids] for text in texts])

    def example(self) -> Tensor:
        """Return an example input, [2, 1]."""
        return torch.ones(2, 1, dtype=torch.int32, device=self.idf.device)

    def forward(self, ids: Tensor) -> Tensor:
        index = ids.long()
        counts = self.idf.new_zeros(len(ids), len(self.idf) + 1)
        counts = counts.scatter_add(1, index, torch.ones_like(index, dtype=self.idf.dtype))
        return nn.functional.normalize(counts[:, 1:] * self.idf, dim=1)

    def get_extra_state(self) -> list[str]:
        """Return the vocabulary, which checkpoints store."""
        return self.vocabulary

    def set_extra_state(self, state: Any) -> None:
        """Load the vocabulary and resize the weights to fit it."""
        self.vocabulary = list(state)
        self.ids = {gram: i for i, gram in enumerate(self.vocabulary, start=1)}
        if len(self.idf) != len(self.vocabulary):
            self.idf = self.idf.new_zeros(len(self.vocabulary))
