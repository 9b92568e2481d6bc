"""Files of weights: safetensors, or torch's own format without code; assigned by name or in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError, nearest_path, require
from metarun.extras import imported
from metarun.models.pretrained import in_package

FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file of weights in a folder."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which files of training scripts keep the tensors; the first one that is there is read."""


def weights_file(weights: str) -> Path:
    """Return the file that ``model.weights`` names: a file, a folder with one, or a path in an installed package.

    Raises:
        UserError: There is no such file.
    """
    path = Path(weights).expanduser()
    path = path if path.exists() else in_package("model.weights", weights) or path
    if not path.is_dir():
        require(path.is_file(), f"model.weights={weights}: no such file{nearest_path(path)}")
        return path
    found = [path / name for name in FILES if (path / name).is_file()]
    require(bool(found), f"model.weights={weights}: the folder has none of {', '.join(FILES)}")
    return found[0]


def read_weights(file: Path, where: str) -> dict[str, Tensor]:
    """Read the tensors of a file by name.

    Args:
        file: A ``.safetensors`` file, or one that ``torch.save`` wrote. No code in it is run.
        where: Configuration key and value, for messages.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    try:
        stored: dict[str, Any]
        if file.suffix == ".safetensors":
            stored = imported("safetensors.torch", f"{where}: a file of safetensors", "vision").load_file(file)
        else:
            stored = torch.load(file, map_location="cpu", weights_only=True)
            stored = next((stored[key] for key in WRAPPERS if isinstance(stored.get(key), dict)), stored)
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in stored.items()):
            raise ValueError("no file of tensors by name")
    except UserError:
        raise
    except Exception as error:  # of many kinds in torch and safetensors
        raise UserError(f"{where}: cannot be read as weights ({short(error)})") from None
    of_copies = "module."  # the prefix of torch's wrappers for several devices
    wrapped = bool(stored) and all(name.startswith(of_copies) for name in stored)
    return {name.removeprefix(of_copies) if wrapped else name: value for name, value in stored.items()}


def load_by_name(net: nn.Module, stored: Mapping[str, Tensor], where: str, left_out: Sequence[str] = ()) -> None:
    """Assign tensors to those of a network by their names.

    Args:
        net: Network to change in place.
        stored: Tensors by name.
        where: Configuration key and value, for messages.
        left_out: Names of layers that the network lacks on purpose, as its classifier, and whose tensors are not used.

    Raises:
        UserError: A tensor is missing, has another shape, or belongs to no layer of the network.
    """
    wanted = net.state_dict()
    # Batch norm counts its batches, which older files do not hold.
    missing = [name for name in wanted if name not in stored and not name.endswith("num_batches_tracked")]
    require(not missing, f"{where}: has no tensor {missing[0] if missing else ''}{_more(missing)}, which the network "
            "needs: weights of another network")  # fmt: skip
    others = tuple(f"{name}." for name in left_out)
    extra = [name for name in stored if name not in wanted and not name.startswith(others or "\0")]
    require(not extra, f"{where}: has the tensor {extra[0] if extra else ''}{_more(extra)}, which the network lacks: "
            "weights of another network")  # fmt: skip
    for name, value in wanted.items():
        _require_shape(where, name, stored.get(name, value), name, value)
    net.load_state_dict({name: stored.get(name, value) for name, value in wanted.items()})


def load_in_order(net: nn.Module, stored: Mapping[str, Tensor], where: str) -> None:
    """Assign tensors to those of a network in order, whatever their names.

    Tensors that the network lacks at the end, as those of a classifier, are left out.

    Args:
        net: Network to change in place.
        stored: Tensors by name.
        where: Configuration key and value, for messages.

    Raises:
        UserError: Numbers or shapes of the tensors differ.
    """
    wanted = net.state_dict()
    require(
        len(wanted) <= len(stored) <= len(wanted) + 2,
        f"{where}: has {len(stored)} tensors, and the network {len(wanted)} without a classifier: another network",
    )
    for (name, value), (theirs, given) in zip(wanted.items(), stored.items(), strict=False):
        _require_shape(where, theirs, given, name, value)
    net.load_state_dict(dict(zip(wanted, stored.values(), strict=False)))


def short(error: BaseException) -> str:
    """Return the message of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _require_shape(where: str, theirs: str, given: Tensor, name: str, value: Tensor) -> None:
    require(
        value.shape == given.shape,
        f"{where}: tensor {theirs} is {list(given.shape)}, and {name} of the network {list(value.shape)}",
    )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
