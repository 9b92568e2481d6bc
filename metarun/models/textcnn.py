"""Convolutional network over word embeddings for sentences (Kim 2014, arXiv:1408.5882)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.models.tokens import pad, words
from metarun.types import Positive

PAD, UNKNOWN = 0, 1


class TextCNN(nn.Module):
    """Word embeddings, convolutions of several widths, ReLU and maximum over time.

    Maps word ids [N, L], 0 for padding, to features [N, filters * len(widths)]. Embeddings are trained from scratch.

    Args:
        texts: Meta-train texts, from which the vocabulary is built.
        embedding: Size of a word embedding.
        widths: Widths of the convolutions in words.
        filters: Number of filters of each width.
        min_texts: Minimum number of meta-train texts that contain a word. Rarer words share one unknown word.
        max_words: Number of words after which a text is cut.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text",)
    role: ClassVar[str] = "features"

    def __init__(
        self,
        texts: Sequence[str],
        *,
        embedding: Positive,
        widths: Sequence[Positive],
        filters: Positive,
        min_texts: Positive,
        max_words: Positive,
    ) -> None:
        super().__init__()
        texts_with = Counter(word for text in texts for word in dict.fromkeys(words(text)))
        self.max_words = max_words
        self.embedding = nn.Parameter(torch.empty(0, embedding))
        self.set_extra_state([word for word, count in texts_with.items() if count >= min_texts])
        nn.init.normal_(self.embedding)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding, filters, width, padding=width) for width in widths)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the word ids of texts, int32 [N, L], padded with 0."""
        return pad([[self.ids.get(w, UNKNOWN) for w in words(text)[: self.max_words]] for text in texts])

    def example(self) -> Tensor:
        """Return an example input, [2, 1]."""
        return torch.full((2, 1), UNKNOWN, dtype=torch.int32, device=self.embedding.device)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding[ids.long()] * (ids != PAD)[..., None]
        # Padding by the whole width gives every text a window without words. The features of a short text therefore do
        # not depend on the length of the texts that it is batched with.
        return torch.cat([torch.relu(f(x.transpose(1, 2))).amax(2) for f in self.convolutions], dim=1)

    def get_extra_state(self) -> list[str]:
        """Return the vocabulary, which checkpoints store."""
        return self.vocabulary

    def set_extra_state(self, state: Any) -> None:
        """Load the vocabulary and resize the weights to fit it."""
        self.vocabulary = list(state)
        self.ids = {word: i for i, word in enumerate(self.vocabulary, start=2)}
        rows = len(self.vocabulary) + 2
        if len(self.embedding) != rows:
            self.embedding = nn.Parameter(self.embedding.new_zeros(rows, self.embedding.shape[1]))
