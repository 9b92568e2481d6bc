"""The format ``onnx``: a learner's computation for ONNX Runtime and other programs that read ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.errors import RunFailed
from metarun.export import Request
from metarun.export.graph import traced
from metarun.export.learners import Compute, Whole, export_learner
from metarun.extras import imported

FILE = "learner.onnx"


def export(request: Request) -> Iterator[str]:
    """Write ``learner.onnx``, and yield lines to print."""
    for module in ("onnx", "onnxruntime", "onnxscript"):
        imported(module, "--to onnx", "export")
    return export_learner(request, "onnx", write)


def write(whole: Whole, folder: Path) -> tuple[list[Path], Compute]:
    """Write ``learner.onnx`` to a folder. Returns its path, and its computation by ONNX Runtime."""
    file = folder / FILE
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                traced(whole), (), file, input_names=whole.names, output_names=[whole.result], dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        except RunFailed:
            raise
        except Exception as error:  # of many kinds in torch and onnxscript
            kind = type(whole.algorithm).__name__
            reason = " ".join(str(error).split())[:200]
            raise RunFailed(f"{kind} cannot be written as ONNX ({reason}); --to torch.export may work") from error
    return [file], loaded(file, whole.names)


def loaded(file: Path, names: list[str]) -> Compute:
    """Return the computation of an ONNX file by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def compute(*inputs: Tensor) -> Tensor:
        given: dict[str, Any] = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return compute


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log messages."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
