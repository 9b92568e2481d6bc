"""Labelled examples sorted by class, the data of few-shot classification."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class ClassData:
    """Examples sorted by class.

    Args:
        x: Examples [N, ...]; class c owns rows ``offsets[c]:offsets[c + 1]``. A function that loads them is called at
            first use, after episodes have been checked against the data.
        offsets: First row of each class, and N: [C + 1].
        names: Names of the C classes.
        digests: Hashes of the content of each class, by which a run recognises its data later, or a function that
            returns them. Default: hashes of the rows of ``x``. An empty sequence turns the comparison off.
        places: Absolute paths that the data were read from.
    """

    def __init__(
        self,
        x: Tensor | Callable[[], Tensor],
        offsets: np.ndarray,
        names: list[str],
        digests: Sequence[str] | Callable[[], Sequence[str]] | None = None,
        places: Sequence[str] = (),
    ) -> None:
        self._x, self.offsets, self.names, self._digests, self.places = x, offsets, names, digests, tuple(places)

    @property
    def x(self) -> Tensor:
        if not isinstance(self._x, Tensor):
            self._x = self._x()
        return self._x

    @x.setter
    def x(self, x: Tensor) -> None:
        self._x = x

    @property
    def sizes(self) -> np.ndarray:
        """Number of examples of each class, [C]."""
        return np.diff(self.offsets)

    @property
    def digests(self) -> Sequence[str]:
        """Hash of each class's content, [C]; empty if content is not compared."""
        if self._digests is None:
            rows = zip(self.offsets, self.offsets[1:], strict=False)
            self._digests = [content_hash(self.x[a:b].cpu().contiguous().numpy().tobytes()) for a, b in rows]
        elif callable(self._digests):
            self._digests = self._digests()
        return self._digests

    def to(self, device: torch.device) -> ClassData:
        """Return a copy with ``x`` on a device.

        Args:
            device: The device.
        """
        return ClassData(self.x.to(device), self.offsets, self.names, self._digests, self.places)


def content_hash(content: bytes) -> str:
    """Return a short hash of ``content`` for :attr:`ClassData.digests`."""
    return hashlib.sha256(content).hexdigest()[:16]
