"""A model that starts where an earlier run's ended, whatever algorithm trained that."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from metarun.errors import UserError, require
from metarun.tracking.rundir import RunDirectory
from metarun.training import checkpoint


def take_model(model: nn.Module, run: Path, device: torch.device) -> Path:
    """Give ``model`` the parameters and buffers of the run's: its best on validation, else its last; which file.

    An algorithm holds its model under a name of its own choice: that of the first holder of all the model's names.
    """
    checkpoints = RunDirectory.open(run).path / "checkpoints"
    path = next((p for p in (checkpoints / "best.pt", checkpoints / "last.pt") if p.is_file()), checkpoints / "last.pt")
    held = checkpoint.load(path, device)["algorithm"]["parameters"]
    wanted = model.state_dict()
    require(bool(wanted), f"runner.init_from={run}: this run's model has no parameters to start from it")
    first = next(iter(wanted))
    prefixes = [name.removesuffix(first) for name in held if name == first or name.endswith(f".{first}")]
    prefix = next((p for p in prefixes if all(p + name in held for name in wanted)), None)
    if prefix is None:
        raise UserError(f"runner.init_from={run}: that run's model has no {first}, or not all of this one's parameters")
    for name, value in wanted.items():
        other = held[prefix + name]
        if isinstance(value, Tensor) and value.shape != other.shape:
            sizes = f"{list(other.shape)} there and {list(value.shape)} here"
            raise UserError(f"runner.init_from={run}: the model's {name} is {sizes}; both need the same model.* keys")
    model.load_state_dict({name: held[prefix + name] for name in wanted})
    return path
