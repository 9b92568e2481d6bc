"""Checkpoints: written whole or not at all, readable without running code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from metarun.errors import RunFailed, UserError
from metarun.tracking.rundir import atomic_write


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) to a temporary name, sync and rename."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        atomic_write(path, buffer.getvalue())
    except OSError as error:
        raise RunFailed(f"cannot write checkpoint {path}: {error.strerror}") from None


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint; raises :class:`UserError` if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: the run ended before it wrote one")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged and cannot be read ({reason[:120]})") from None


def iteration(state: dict[str, Any]) -> int:
    """The iteration at which a checkpoint was written."""
    return int(state["progress"]["iteration"] if "progress" in state else state["iteration"])
