"""The format ``torch.export``: a learner's computation as a graph of torch, which runs without metarun's code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from metarun.errors import RunFailed
from metarun.export import Request
from metarun.export.learners import Compute, Whole, export_learner, random_inputs

FILE = "learner.pt2"


def export(request: Request) -> Iterator[str]:
    """Write ``learner.pt2``, and yield lines to print."""

    def write(whole: Whole, folder: Path) -> tuple[list[Path], Compute]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(traced(whole), folder / FILE)
        return [folder / FILE], torch.export.load(folder / FILE).module()

    return export_learner(request, "torch.export", write)


def traced(whole: Whole) -> ExportedProgram:
    """Return the computation as a graph with any number of queries, and of tokens of a text.

    Raises:
        RunFailed: torch cannot trace the learner.
    """
    example = random_inputs(whole, 3)
    try:
        with torch.no_grad():
            return torch.export.export(whole, example, dynamic_shapes=dynamic_shapes(whole))
    except Exception as error:  # of many kinds in torch
        reason = " ".join(str(error).split())[:200]
        kind = type(whole.algorithm).__name__
        raise RunFailed(f"torch.export cannot trace {kind} ({reason}); --to safetensors works") from error


def dynamic_shapes(whole: Whole) -> tuple[dict[int, Any], ...]:
    """Return the dimensions of each input that vary: the number of queries, and of tokens."""
    sizes: dict[int, Any] = {0: Dim("queries")}
    if whole.reads_tokens:
        sizes[1] = Dim("tokens", min=2, max=whole.longest)
    return tuple(sizes for _ in whole.names)
