"""Shared parts of pretrained encoders: which weights are trained, and embeddings that are computed once."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.lowrank import add, fix
from metarun.progress import Progress
from metarun.tasks.files import Arrays, cached

Tune = Literal["frozen", "norm", "lora", "all"]
"""Weights of an encoder that are trained.

``frozen``: none, each input is embedded once. ``norm``: scales and shifts of the normalisation layers. ``lora``:
low-rank updates of linear and convolution layers (:class:`~metarun.models.lowrank.LowRankLayer`; Hu et al. 2022,
arXiv:2106.09685), which start at 0. ``all``: all weights. With ``norm`` and ``lora`` the other weights are not stored
in checkpoints.
"""


def select_trained(net: nn.Module, tune: Tune, rank: int) -> None:
    """Fix the weights of a network that are not trained, in place.

    Args:
        net: Pretrained network.
        tune: Weights to train; see :data:`Tune`.
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
    compute: Callable[[], Iterator[tuple[Tensor, Tensor]]],
) -> Tensor:
    """Return the embeddings of a frozen encoder, from the cache or computed with a progress bar and cached.

    Args:
        name: Name of the encoder, for the progress bar.
        unit: Name of the inputs in the plural.
        shape: Number of inputs and of features, (N, F).
        key: JSON values that hold everything the embeddings depend on: weights, preprocessing and inputs.
        compute: Function that yields (rows [B], their embeddings [B, F]) until all rows are done.

    Returns:
        Embeddings [N, F] of the default dtype.
    """

    def build() -> Arrays:
        embeddings = torch.empty(shape)
        with Progress(f"{name}: embedding", shape[0], unit, summary=True) as progress, torch.no_grad():
            for rows, embedded in compute():
                embeddings[rows] = embedded.cpu().float()
                progress.update(len(rows))
        return {"embeddings": embeddings.numpy()}

    return torch.from_numpy(cached("embeddings", key, build)["embeddings"]).to(torch.get_default_dtype())


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
