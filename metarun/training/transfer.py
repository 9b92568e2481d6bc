"""What a model takes over from an earlier run: its parameters, and the vocabulary that decides their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError, require
from metarun.tasks.base import Spec
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


def misfit(algorithm: nn.Module, held: Mapping[str, Any]) -> str | None:
    """Why ``algorithm`` cannot take over the parameters ``held``, those of another; ``None`` if it can.

    The sentence names the key that decides: the number of classes of a fixed head, or the size and colour of images.
    """
    wanted = algorithm.state_dict()
    shapes = {
        name: (tuple(held[name].shape), tuple(value.shape))
        for name, value in wanted.items()
        if isinstance(value, Tensor) and isinstance(held.get(name), Tensor) and held[name].shape != value.shape
    }
    if not shapes and wanted.keys() == held.keys():
        return None
    if not shapes:
        missing, more = sorted(wanted.keys() - held.keys()), sorted(held.keys() - wanted.keys())
        named = f"it has no {missing[0]}" if missing else f"it has {more[0]} too"
        return f"what is stored is another learner's: {named}; its model.* and algorithm.* keys must be the run's own"
    spec: Spec = algorithm.spec  # type: ignore[assignment]
    resized = {(there, here) for there, here in shapes.values() if len(there) == len(here)}
    dimensions = {pair for there, here in resized for pair in zip(there, here, strict=True) if pair[0] != pair[1]}
    if (
        spec.kind == "classification"
        and len(dimensions) == 1
        and {here for _, here in dimensions} == {spec.output_size}
    ):
        ((outputs, way),) = dimensions
        return fixed_head(way, outputs)
    channels = spec.input_shape[0] if spec.modality == "image" else None
    name, (there, here) = next(iter(shapes.items()))
    if len(there) == len(here) == 4 and here[1] == channels != there[1]:
        return (
            f"this run's learner reads images of {there[1]} channel{'s' if there[1] > 1 else ''}, and these have "
            f"{channels}; use the run's own task.colour, or train on such images"
        )
    sizes = f"its {name} is {list(there)}, and {list(here)} would be needed"
    inputs = " images of the run's own task.size, and" if spec.modality == "image" else ""
    return f"this run's learner does not fit: {sizes}; use{inputs} the run's own keys of task, model and algorithm"


def fixed_head(way: int, outputs: int, what: str = "task.way is {way}", most: bool = False) -> str:
    """The sentence for a learner whose head has another number of outputs than a task has classes.

    ``most``: whether fewer classes than outputs would do.
    """
    some = f"up to {outputs}" if most else outputs
    return (
        f"{what.format(way=way)}, and this run's learner has a head of {outputs}; take {some} classes, train with "
        f"task.way={way}, or use a learner without a fixed head, such as protonet"
    )
