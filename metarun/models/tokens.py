"""Tokenisation for the text models: words, n-grams, and padding of ids."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Split a text into lower-case words and single punctuation marks."""
    return _WORD.findall(text.lower())


def word_ngrams(tokens: Sequence[str], longest: int) -> list[str]:
    """Return all n-grams of 1..``longest`` words, joined by spaces."""
    return [" ".join(tokens[i : i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1)]


def char_ngrams(word: str, shortest: int, longest: int) -> list[str]:
    """Return all n-grams of ``shortest``..``longest`` characters of a word with a space before and after it."""
    padded = f" {word} "
    return [padded[i : i + n] for n in range(shortest, longest + 1) for i in range(len(padded) - n + 1)]


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Pad rows of ids with 0 to a tensor of int32, [N, L], where L is the longest row and at least 1."""
    width = max((len(row) for row in rows), default=0) or 1
    ids = torch.zeros(len(rows), width, dtype=torch.int32)
    view = ids.numpy()
    for i, row in enumerate(rows):
        view[i, : len(row)] = row
    return ids
