"""Checkpoints: written whole or not at all, readable without running code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    """Read a checkpoint; raises :class:`UserError` if it is missing, damaged, or none of a run's."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: the run ended before it wrote one")
    state = read(path, device, f"checkpoint {path}")
    algorithm = state.get("algorithm")
    if not isinstance(algorithm, dict) or not isinstance(algorithm.get("parameters"), dict):
        raise UserError(f"checkpoint {path} is damaged: it holds no algorithm's parameters")
    try:
        iteration(state)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"checkpoint {path} is damaged: it does not say its iteration") from None
    return state


def read(path: Path, device: torch.device, what: str) -> dict[str, Any]:
    """The dictionary of tensors and plain values in a file of torch's.

    Raises :class:`UserError`, which begins with ``what``, for a damaged file, for one that asks for anything else, and
    for one that claims more values than it has bytes: what torch writes is not packed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
            if packed or sum(info.file_size for info in archive.infolist()) > size:
                raise ValueError("it unpacks to more than its size")
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("it holds no dictionary")
        for tensor in _tensors(state):
            if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > size:
                raise ValueError(f"a tensor of shape {list(tensor.shape)} is more than the file holds")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{what} is damaged and cannot be read ({reason[:120]})") from None
    return state


def iteration(state: Mapping[str, Any]) -> int:
    """The iteration at which a checkpoint was written."""
    return int(state["progress"]["iteration"] if "progress" in state else state["iteration"])


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries and lists, once."""
    waiting, seen = [value], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, (list, tuple, set)):
            waiting += each
