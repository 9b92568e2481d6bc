"""What a model takes over from an earlier run: its parameters, and the vocabulary that decides their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError, require
from metarun.tracking.rundir import RunDirectory
from metarun.training import checkpoint


def take_model(model: nn.Module, run: Path, device: torch.device) -> Path:
    """Give ``model`` the parameters and buffers of the run's: its best on validation, else its last; which file."""
    path = newest(run)
    held = checkpoint.load(path, device)["algorithm"]["parameters"]
    wanted = model.state_dict()
    require(bool(wanted), f"runner.init_from={run}: this run's model has no parameters to start from it")
    prefix = prefix_of(model, held)
    if prefix is None:
        first = next(iter(wanted))
        raise UserError(f"runner.init_from={run}: that run's model has no {first}, or not all of this one's parameters")
    for name, value in wanted.items():
        other = held[prefix + name]
        if isinstance(value, Tensor) and value.shape != other.shape:
            sizes = f"{list(other.shape)} there and {list(value.shape)} here"
            raise UserError(
                f"runner.init_from={run}: the model's {name} is {sizes}; both need the same model.* keys, and "
                "inputs of one size and colour"
            )
    model.load_state_dict({name: held[prefix + name] for name in wanted})
    return path


def newest(run: Path) -> Path:
    """The checkpoint of ``run`` that others start from: its best on validation, else its last."""
    checkpoints = RunDirectory.open(run).path / "checkpoints"
    return next((p for p in (checkpoints / "best.pt", checkpoints / "last.pt") if p.is_file()), checkpoints / "last.pt")


def take_vocabulary(model: nn.Module, held: Mapping[str, Any]) -> None:
    """Give a text model the vocabulary in ``held``, an algorithm's stored parameters; other models stay as they are.

    A vocabulary decides how texts are encoded and the shapes of parameters. It must therefore be there before texts are
    encoded and before an algorithm is built on the model.
    """
    prefix = prefix_of(model, held)
    for name, module in vocabularies(model).items() if prefix is not None else ():
        module.set_extra_state(held[f"{prefix}{name}{'.' if name else ''}_extra_state"])


def vocabularies(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``model`` with a state beside tensors, by name."""
    plain = nn.Module.get_extra_state
    return {name: module for name, module in model.named_modules() if type(module).get_extra_state is not plain}


def encoding_state(model: nn.Module | None) -> dict[str, Any]:
    """What the ids that a text model turns texts into may depend on: its vocabularies and buffers."""
    if model is None or not hasattr(model, "encode"):
        return {}
    vocabulary = {name: module.get_extra_state() for name, module in vocabularies(model).items()}
    return vocabulary | {f"{name} (buffer)": buffer.tolist() for name, buffer in model.named_buffers()}


def prefix_of(model: nn.Module, held: Mapping[str, Any]) -> str | None:
    """The prefix of ``model``'s parameters in ``held``, those of an algorithm; ``None`` if not all are there.

    An algorithm holds its model under a name of its own choice: that of the first holder of all the model's names.
    """
    wanted = model.state_dict()
    first = next(iter(wanted), "")
    prefixes = [name.removesuffix(first) for name in held if name == first or name.endswith(f".{first}")]
    return next((p for p in prefixes if all(p + name in held for name in wanted)), None)
