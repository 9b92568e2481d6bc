"""Shared parts of pretrained encoders: which weights are trained, and embeddings that are computed once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun import stopping
from metarun.errors import require
from metarun.models.lowrank import add, fix
from metarun.progress import Progress
from metarun.tasks.files import Arrays, cached
from metarun.types import Tune

Embed = Callable[[Tensor], Tensor]
"""A function from rows of the inputs [B] to their embeddings [B, F]."""
BATCH_SIZE = 64
"""Number of inputs that are embedded at once. Larger batches are no faster on a few cores."""
BLOCK = 4 * BATCH_SIZE
"""Number of inputs whose embeddings are one file of the cache."""


class Embedder(nn.Module):
    """A frozen encoder as a module: prepared inputs [N, ...] -> embeddings [N, F].

    Args:
        net: The network.
        embed: Function of the network and of inputs, images or token ids, that returns embeddings.
    """

    def __init__(self, net: nn.Module, embed: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self._embed = net, embed

    def forward(self, x: Tensor) -> Tensor:
        return self._embed(self.net, x)


def embedder_of(model: Any) -> Embedder | None:
    """Return the frozen encoder of a model that is given embeddings; ``None`` for other models."""
    embedder = getattr(model, "embedder", None)
    return embedder() if callable(embedder) else None


def encoder_stamp(model: Any) -> str | None:
    """Return a hash of the weights and preprocessing of a model's frozen encoder; ``None`` for other models."""
    return model.stamp() if getattr(model, "is_frozen", False) else None


def select_trained(net: nn.Module, tune: Tune, rank: int) -> None:
    """Fix the weights of a network that are not trained, in place.

    Args:
        net: Pretrained network.
        tune: Weights to train; see :data:`~metarun.types.Tune`.
        rank: Rank of the low-rank updates.
    """
    if tune == "norm":
        fix(net, persistent=False, keep=is_normalisation)
        require(any(True for _ in net.parameters()), "model.tune=norm: the network has no normalisation layer to train")
    elif tune != "all":
        fix(net, persistent=False)
    if tune == "lora":
        add(net, rank)


def is_normalisation(layer: nn.Module) -> bool:
    """Return whether a layer normalises, by its class name: BatchNorm2d, LayerNorm, BatchNormAct2d, RMSNorm."""
    return "norm" in type(layer).__name__.lower()


def embed_once(
    name: str,
    unit: str,
    shape: tuple[int, int],
    key: Mapping[str, Any],
    start: Callable[[], tuple[Tensor, Embed]],
) -> Tensor:
    """Return the embeddings of a frozen encoder, from the cache or computed with a progress bar and cached.

    They are cached in blocks of :data:`BLOCK` inputs, so that an interrupted computation continues where it ended.

    Args:
        name: Name of the encoder, for the progress bar.
        unit: Name of the inputs in the plural.
        shape: Number of inputs and of features, (N, F).
        key: JSON values that hold everything the embeddings depend on: weights, preprocessing and inputs.
        start: Function that loads the encoder. It returns the order in which rows are embedded, [N], and the function
            that embeds. It is called if some embedding is not in the cache.

    Returns:
        Embeddings [N, F] of the default dtype.

    Raises:
        Interrupted: A signal asked the process to stop.
    """
    embeddings, done = torch.empty(shape), 0
    with contextlib.ExitStack() as stack, torch.no_grad():

        @functools.cache
        def started() -> tuple[Tensor, Embed, Progress]:
            order, embed = start()
            progress = Progress(f"{name}: embedding", shape[0], unit, done=done, summary=True)
            return order, embed, stack.enter_context(progress)

        def build(first: int) -> Arrays:
            order, embed, progress = started()
            rows, found = order[first : first + BLOCK], []
            for batch in rows.split(BATCH_SIZE):
                stopping.raise_if_requested()
                found.append(embed(batch).cpu().float())
                progress.update(len(batch))
            return {"rows": rows.numpy(), "embeddings": torch.cat(found).numpy()}

        for first in range(0, shape[0], BLOCK):
            block = cached("embeddings", {**key, "rows": [first, BLOCK]}, functools.partial(build, first))
            embeddings[torch.from_numpy(block["rows"])] = torch.from_numpy(block["embeddings"])
            done += len(block["rows"])
    return embeddings.to(torch.get_default_dtype())


def pretrained_protocol(name: str, tune: Tune, weights: str | None, pretrained_on: str | None) -> dict[str, Any]:
    """Return the facts needed to compare results of a pretrained encoder with others.

    Args:
        name: Name of the network.
        tune: Weights that are trained.
        weights: Name of its weights; ``None`` if they are random.
        pretrained_on: Data of its pretraining and their overlap with the test classes, if that is known.
    """
    if weights is None:
        return {"encoder": name, "weights": "random", "tune": tune}
    data = pretrained_on or "not stated (may overlap the test data)"
    return {"encoder": name, **({} if weights == name else {"weights": weights}), "tune": tune, "pretrained_on": data}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def in_package(key: str, name: str) -> Path | None:
    """Return the path that ``package:path`` names inside an installed Python package; ``None`` without a colon.

    Args:
        key: Configuration key, for messages.
        name: Value of the key.

    Raises:
        UserError: The package is not installed, or has no such path.
    """
    package, colon, inside = name.partition(":")
    if not colon:
        return None
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    places = found.submodule_search_locations if found is not None else None
    require(bool(places), f"{key}={name}: the Python package '{package}' is not installed")
    assert places
    path = Path(places[0]) / inside
    require(path.exists(), f"{key}={name}: the package has no {inside}")
    return path
