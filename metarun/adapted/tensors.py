"""An adapted learner as two files: its tensors in safetensors, and everything else as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metarun import strict_json
from metarun.errors import UserError
from metarun.extras import imported
from metarun.tracking.files import atomic_write
from metarun.untrusted import plain, read_json

FILE = "learner.safetensors"
JSON_FILE = "learner.json"
MARK = "tensor"
"""Key of a JSON object that stands for the tensor of that name."""


def write(folder: Path, kept: Mapping[str, Any]) -> list[Path]:
    """Write a dictionary of tensors and plain values as two files, and return their paths."""
    save = imported("safetensors.torch", FILE, "export").save
    found: dict[str, Tensor] = {}
    values = _apart(kept, "", found)
    files = [folder / FILE, folder / JSON_FILE]
    atomic_write(files[0], save(found))
    atomic_write(files[1], strict_json.dumps(values, indent=1).encode())
    return files


def read(file: Path) -> dict[str, Any]:
    """Read what :func:`write` wrote, given the file of tensors.

    Raises:
        UserError: A file is missing or damaged, or they do not belong together.
    """
    load = imported("safetensors.torch", FILE, "export").load
    from safetensors import SafetensorError

    values = read_json(file.with_name(JSON_FILE))
    try:
        found = load(file.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged and cannot be read ({str(error)[:120]})") from None
    if not plain(values):
        raise UserError(f"{file.with_name(JSON_FILE)} is damaged: too many values")
    try:
        return {key: _joined(value, found) for key, value in values.items()}
    except KeyError as error:
        raise UserError(f"{file} has no tensor {error}, which {JSON_FILE} names") from None


def _apart(value: Any, name: str, found: dict[str, Tensor]) -> Any:
    """Return ``value`` with the names of its tensors in their place; the tensors are added to ``found``."""
    if isinstance(value, Tensor):
        found[name] = value.detach().cpu().clone().contiguous()
        return {MARK: name}
    if isinstance(value, Mapping):
        return {key: _apart(each, f"{name}.{key}" if name else str(key), found) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_apart(each, f"{name}.{i}", found) for i, each in enumerate(value)]
    return value


def _joined(value: Any, found: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return found[value[MARK]] if value.keys() == {MARK} else {key: _joined(v, found) for key, v in value.items()}
    return [_joined(each, found) for each in value] if isinstance(value, list) else value
