"""TF-IDF: the features of the baseline that a learned text model must beat."""

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
    """Exact TF-IDF of n-grams, L2-normalised; nothing is learned but the statistics of the meta-train texts.

    Weight of an n-gram in a text: its count there times ``ln((1 + texts) / (1 + texts with it)) + 1``.
    ``unit`` char takes n-grams of ``shortest``..``longest`` characters inside words (a space at either end
    counts), ``unit`` word runs of that many words. N-grams that fewer than ``min_texts`` meta-train texts
    hold are left out. With ProtoNet and ``runner.iterations=0`` this is the nearest-prototype baseline.

    Ids int [N, L] (0: none) -> [N, n-grams].
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
        require(shortest <= longest, f"model.shortest={shortest} is more than model.longest={longest}")
        self.unit, self.shortest, self.longest = unit, shortest, longest
        held = Counter(gram for text in texts for gram in dict.fromkeys(self.grams(text)))
        vocabulary = [gram for gram, count in held.items() if count >= min_texts]
        require(
            bool(vocabulary) or not texts,
            f"model.min_texts={min_texts}: no n-gram is in that many of the {len(texts)} meta-train texts",
        )
        counts = torch.tensor([held[gram] for gram in vocabulary], dtype=torch.get_default_dtype())
        self.register_buffer("idf", torch.log((1 + len(texts)) / (1 + counts)) + 1)
        self.set_extra_state(vocabulary)

    def grams(self, text: str) -> list[str]:
        """The n-grams of ``text``, each as often as it occurs."""
        tokens = words(text)
        if self.unit == "word":
            return [g for g in word_ngrams(tokens, self.longest) if g.count(" ") + 1 >= self.shortest]
        return [gram for word in tokens for gram in char_ngrams(word, self.shortest, self.longest)]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Ids of the known n-grams, int32 [N, L], repeated as they occur, 0 where there are no more."""
        return pad([[self.ids[gram] for gram in self.grams(text) if gram in self.ids] for text in texts])

    def example(self) -> Tensor:
        return torch.ones(2, 1, dtype=torch.int32, device=self.idf.device)

    def forward(self, ids: Tensor) -> Tensor:
        index = ids.long()
        counts = self.idf.new_zeros(len(ids), len(self.idf) + 1)
        counts = counts.scatter_add(1, index, torch.ones_like(index, dtype=self.idf.dtype))
        return nn.functional.normalize(counts[:, 1:] * self.idf, dim=1)

    def get_extra_state(self) -> list[str]:
        return self.vocabulary

    def set_extra_state(self, state: Any) -> None:
        self.vocabulary = list(state)
        self.ids = {gram: i for i, gram in enumerate(self.vocabulary, start=1)}
        if len(self.idf) != len(self.vocabulary):
            self.idf = self.idf.new_zeros(len(self.vocabulary))
