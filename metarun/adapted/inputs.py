"""The user's own inputs as a run's models see them: image files, texts, or rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.errors import UserError, require
from metarun.tasks.base import Spec, Task
from metarun.tasks.vision.folder import read_image


@dataclass(frozen=True)
class Inputs:
    """How inputs of one modality become a tensor [N, ...]."""

    spec: Spec
    dark_paper: bool = False
    """Of drawings: whether ink is bright on dark. The user's own, as a rule dark on bright, are then turned round."""

    @classmethod
    def of(cls, task: Task) -> Inputs:
        """As ``task``'s own examples are prepared; raises :class:`UserError` for families without inputs to give."""
        if task.spec.kind in ("control", "generation") or task.spec.modality not in ("image", "text", "vector"):
            what = "making images" if task.spec.kind == "generation" else task.spec.modality
            raise UserError(f"adapt predicts from images, texts and numbers; this run's learner is for {what}")
        return cls(task.spec, getattr(task, "dark_paper", False))

    def tensor(self, items: Sequence[Any], model: Any) -> Tensor:
        """``items`` as a tensor: paths of images, texts (which ``model`` turns into ids), or rows of numbers."""
        require(len(items) > 0, "there is nothing to read")
        if self.spec.modality == "image":
            return torch.stack([torch.from_numpy(self.image(Path(item))) for item in items])
        if self.spec.modality == "text":
            return model.encode(list(items))
        return torch.as_tensor(np.asarray(items, dtype=np.float64), dtype=torch.get_default_dtype())

    def image(self, file: Path) -> np.ndarray:
        """One image, uint8 [channels, height, width]: its middle square, resized."""
        channels, height, width = self.spec.input_shape
        require(height == width and channels in (1, 3), f"images of shape {self.spec.input_shape} cannot be read")
        pixels = read_image(file, height, "grey" if channels == 1 else "rgb")
        return 255 - pixels if self.dark_paper and pixels.mean() > 127 else pixels
