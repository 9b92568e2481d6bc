"""Checkpoints: written atomically, read without running code, and reused to initialise other runs."""

from __future__ import annotations

import contextlib
import io
import logging
import zipfile
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.errors import RunFailed, UserError, require
from metarun.tasks.base import Task
from metarun.tasks.episode import Spec
from metarun.tracking.files import atomic_write
from metarun.tracking.rundir import RunDirectory

log = logging.getLogger("metarun")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        atomic_write(path, buffer.getvalue())
    except OSError as error:
        raise RunFailed(f"cannot write checkpoint {path}: {error.strerror}") from None
    log.debug("wrote %s", path)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint; raises :class:`UserError` if it is missing, damaged, or not a run's checkpoint."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: the run ended before it wrote one")
    log.debug("read %s", path)
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
    """Read a dictionary of tensors and plain values from a torch file.

    Args:
        path: The file.
        device: Device of the tensors.
        what: Name of the file for messages.

    Raises:
        UserError: The file is damaged, contains other objects, or claims more values than it has bytes.
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
    """Return the iteration at which a checkpoint was written."""
    return int(state["progress"]["iteration"] if "progress" in state else state["iteration"])


def set_temperature(algorithm: Algorithm, state: Mapping[str, Any]) -> None:
    """Give a classifier the temperature of a checkpoint. Checkpoints of earlier versions have none."""
    found = state.get("progress", state).get("temperature")
    if isinstance(algorithm, SupervisedAlgorithm):
        algorithm.temperature = found if isinstance(found, float) and 0 < found < inf else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested dictionaries and lists once."""
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


def restore(algorithm: Algorithm, task: Task, path: Path, state: Mapping[str, Any]) -> None:
    """Load the meta-parameters and optimizer states of the checkpoint ``state``, read from ``path``, into
    ``algorithm``.

    Raises:
        UserError: They do not fit the algorithm.
    """
    if why := misfit(algorithm, state["algorithm"]["parameters"]):
        raise UserError(f"checkpoint {path}: {why}")
    try:
        with encoding_anew(algorithm, task):
            algorithm.restore(state["algorithm"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path} does not fit this model and algorithm ({reason})") from None


def require_statistics(algorithm: Algorithm, path: Path) -> None:
    """Raise :class:`UserError` if the learner of the checkpoint ``path`` lacks statistics of meta-training features.

    Runs without iterations of earlier versions took none, and centred features by zero instead of their mean.
    """
    require(
        not isinstance(algorithm, SupervisedAlgorithm) or algorithm.has_observed,
        f"checkpoint {path}: the run was not meta-trained and kept no mean of the training features, which its head "
        "needs; make the run again",
    )


@contextlib.contextmanager
def encoding_anew(algorithm: Algorithm, task: Task) -> Iterator[None]:
    """Let ``task`` encode its inputs again if the block changes the encoding of the algorithm's model."""
    model = getattr(algorithm, "model", None)
    before = encoding_state(model)
    yield
    if model is not None and encoding_state(model) != before:
        task.prepare(model)


def start_from(run: Path, algorithm: Algorithm, task: Task, device: torch.device) -> None:
    """Initialise the algorithm's model from another run: its best checkpoint on validation, else its last.

    Raises:
        UserError: The models differ.
    """
    path = best_or_last(run)
    held = load(path, device)["algorithm"]["parameters"]
    model = algorithm.model
    wanted = model.state_dict()
    require(bool(wanted), f"runner.init_from={run}: this run's model has no parameters to start from it")
    prefix = prefix_of(model, held)
    if prefix is None:
        first = next(iter(wanted))
        raise UserError(f"runner.init_from={run}: that run's model lacks {first} or other parameters of this one")
    for name, value in wanted.items():
        other = held[prefix + name]
        if isinstance(value, Tensor) and value.shape != other.shape:
            sizes = f"{list(other.shape)} there and {list(value.shape)} here"
            raise UserError(
                f"runner.init_from={run}: the model's {name} is {sizes}; both need the same model.* keys, and "
                "inputs of one size and colour"
            )
    with encoding_anew(algorithm, task):
        model.load_state_dict({name: held[prefix + name] for name in wanted})
    log.info("the model starts from %s", path)


def best_or_last(run: Path) -> Path:
    """Return the checkpoint of ``run`` that others start from: the best on validation, else the last."""
    checkpoints = RunDirectory.open(run).path / "checkpoints"
    return next((p for p in (checkpoints / "best.pt", checkpoints / "last.pt") if p.is_file()), checkpoints / "last.pt")


def take_vocabulary(model: nn.Module, held: Mapping[str, Any]) -> None:
    """Load the vocabulary of a text model from ``held``, an algorithm's stored parameters. Other models are unchanged.

    A vocabulary determines the encoding of texts and shapes of parameters, so it must be loaded before texts are
    encoded and before an algorithm is built on the model. It is found by its own name, since an algorithm may rename
    the model's layers, as WarpGrad does.
    """
    for name, module in vocabularies(model).items():
        wanted = f"{name}._extra_state" if name else "_extra_state"
        stored = next((key for key in held if key == wanted or key.endswith(f".{wanted}")), None)
        if stored is not None:
            module.set_extra_state(held[stored])


def vocabularies(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of ``model`` with a state that is not a tensor, by name."""
    plain = nn.Module.get_extra_state
    return {name: module for name, module in model.named_modules() if type(module).get_extra_state is not plain}


def encoding_state(model: nn.Module | None) -> dict[str, Any]:
    """Return everything that the ids of a text model may depend on: its vocabularies and buffers."""
    if model is None or not hasattr(model, "encode"):
        return {}
    vocabulary = {name: module.get_extra_state() for name, module in vocabularies(model).items()}
    return vocabulary | {f"{name} (buffer)": buffer.tolist() for name, buffer in model.named_buffers()}


def prefix_of(model: nn.Module, held: Mapping[str, Any]) -> str | None:
    """Return the prefix of ``model``'s parameters in an algorithm's parameters ``held``; ``None`` if some are missing.

    Algorithms choose the name of their model, so the prefix is the first one under which all names are found.
    """
    wanted = model.state_dict()
    first = next(iter(wanted), "")
    prefixes = [name.removesuffix(first) for name in held if name == first or name.endswith(f".{first}")]
    return next((p for p in prefixes if all(p + name in held for name in wanted)), None)


def misfit(algorithm: nn.Module, held: Mapping[str, Any]) -> str | None:
    """Return why ``algorithm`` cannot load the parameters ``held``, or ``None`` if it can.

    The sentence names the key that is responsible: the number of classes of a fixed head, or the size and colour of
    images.
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
    """Return the sentence for a learner whose head has another number of outputs than a task has classes.

    Args:
        way: Number of classes of the task.
        outputs: Number of outputs of the head.
        what: Description of the task.
        most: True if fewer classes than outputs are possible.
    """
    some = f"up to {outputs}" if most else outputs
    return (
        f"{what.format(way=way)}, and this run's learner has a head of {outputs}; take {some} classes, train with "
        f"task.way={way}, or use a learner without a fixed head, such as protonet"
    )
