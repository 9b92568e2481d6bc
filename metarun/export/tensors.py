"""The format ``safetensors``: the tensors of a learner, and everything else about it as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from metarun.adapted import tensors
from metarun.adapted.stored import load, located
from metarun.export import Request
from metarun.export.learners import Compute, Whole, export_learner
from metarun.training.checkpoint import read


def export(request: Request) -> Iterator[str]:
    """Write ``learner.safetensors`` and ``learner.json``, and yield lines to print."""

    def write(whole: Whole, folder: Path) -> tuple[list[Path], Compute]:
        source = located(request.source)
        files = tensors.write(folder, read(source, torch.device("cpu"), str(source)))
        return files, Whole(load(folder, request.trust))

    return export_learner(request, "safetensors", write)
