"""The conversion of a learner's inputs to tensors, stored with a run so that it can be applied without its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import UserError, require
from metarun.tasks.base import Task
from metarun.tasks.episode import Spec
from metarun.tasks.tables import shown
from metarun.tasks.vision.images import FILTERS, Preparation, StoredImage

COLUMNS = {"text": "text", "label": "label"}
"""Columns of a table of texts, unless the run's own file had others."""
READABLE = "adapt predicts from images, texts, numbers and tables"


@dataclass(frozen=True)
class Inputs:
    """Converts inputs of one modality to a tensor [N, ...].

    Attributes:
        spec: Description of the task family.
        preparation: Preprocessing of images, the same as in meta-training; ``None`` for other modalities.
        columns: For texts, the names of the text and label columns in the run's own file.
    """

    spec: Spec
    preparation: Preparation | None = None
    columns: Mapping[str, str] = field(default_factory=lambda: dict(COLUMNS))

    @classmethod
    def of(cls, task: Task) -> Inputs:
        """Return the input conversion of a task family."""
        columns = getattr(task, "columns", COLUMNS)
        if task.spec.modality != "image" or len(task.spec.input_shape) != 3:
            return cls(task.spec, None, columns)
        # Families of images without classes, and a user's own, may declare no preparation.
        channels, height, width = task.spec.input_shape
        prepared = getattr(task, "preparation", None) or Preparation(channels, height, width)
        return cls(task.spec, prepared, columns)

    @classmethod
    def from_dict(cls, stored: Any, where: str) -> Inputs:
        """Rebuild the conversion from :meth:`as_dict`; raises :class:`UserError` if ``stored`` has another form."""
        try:
            spec = {**stored["spec"], "input_shape": tuple(stored["spec"]["input_shape"])}
            known = {each.name for each in fields(Spec)} - {"evaluate_samples"}
            require(spec.keys() <= known and isinstance(spec["modality"], str), "unknown")
            require(all(type(n) is int and 0 < n <= 1 << 20 for n in spec["input_shape"]), "sizes")
            images = stored["images"] and Preparation(**stored["images"])
            if images:
                size = (images.channels, images.height, images.width)
                require(size == spec["input_shape"] and images.resize in FILTERS, "images")
            columns = {name: str(stored["columns"][name]) for name in COLUMNS}
            return cls(Spec(**spec), images or None, columns)
        except (KeyError, TypeError, AttributeError, UserError):
            raise UserError(f"{where}: damaged, or of another version of metarun") from None

    def as_dict(self) -> dict[str, Any]:
        """Return the conversion as JSON values."""
        spec = {name: value for name, value in vars(self.spec).items() if name != "evaluate_samples"}
        images = None if self.preparation is None else asdict(self.preparation)
        return {"spec": {**spec, "input_shape": list(self.spec.input_shape)}, "images": images,
                "columns": dict(self.columns)}  # fmt: skip

    def check(self) -> None:
        """Raise :class:`UserError` for families whose inputs cannot be read from files."""
        spec = self.spec
        unread = spec.kind in ("control", "generation", "optimization")
        if unread or spec.modality not in ("image", "text", "vector", "table"):
            purpose = {"generation": "making images", "optimization": "training"}.get(spec.kind, spec.modality)
            raise UserError(f"{READABLE}; this run's learner is for {purpose}")
        require(
            spec.modality != "image" or (len(spec.input_shape) == 3 and spec.input_shape[0] in (1, 3)),
            f"images of shape {list(spec.input_shape)} cannot be read; one or three channels can",
        )

    def tensor(self, items: Any, model: Any) -> Tensor:
        """Convert ``items`` to a tensor [N, ...] that the learner reads; one item is a batch of one.

        Args:
            items: As in :meth:`raw`.
            model: Model whose ``encode`` turns texts into ids, and images into embeddings if it is frozen. Embeddings
                are cached.

        Raises:
            TypeError: An item has the wrong type or shape.
            UserError: An image cannot be read, a number is not finite, or there are no items.
        """
        if self.spec.modality == "text":
            return model.encode(_texts(items))
        found = self.raw(items, model)
        return model.encode(found) if self.spec.modality == "image" and is_frozen(model) else found

    def raw(self, items: Any, model: Any) -> Tensor:
        """Convert ``items`` to a tensor [N, ...] that is not yet embedded by a frozen encoder.

        Args:
            items: Images (paths, Pillow images, arrays or tensors [H, W], [H, W, C] or [C, H, W] of uint8 or of floats
                in 0..1, or a batch of them with one more dimension), texts, or rows of numbers (NaN marks a gap of a
                table).
            model: Model that turns texts into ids.

        Raises:
            TypeError: An item has the wrong type or shape.
            UserError: An image cannot be read, a number is not finite, or there are no items.
        """
        if self.spec.modality == "image":
            images = [self._image(item, i) for i, item in enumerate(_listed_images(items), start=1)]
            require(len(images) > 0, "there is nothing to read")
            return torch.from_numpy(np.stack(images))
        if self.spec.modality == "text":
            return (model.tokens if is_frozen(model) else model.encode)(_texts(items))
        if self.spec.modality == "table":
            return _table_rows(items)
        return _numbers(items, self.spec.input_shape)

    def _image(self, item: Any, number: int) -> NDArray[np.uint8]:
        assert self.preparation is not None
        if isinstance(item, str | Path):
            return self.preparation(Path(item).expanduser())
        if isinstance(item, StoredImage):
            return self.preparation(item.content, item.name)
        name = f"image {number}"
        return self.preparation(item if _is_pillow(item) else _pixels(item, name), name)


def is_frozen(model: Any) -> bool:
    """Return whether a model is a frozen encoder, which is given embeddings instead of images or token ids."""
    return bool(getattr(model, "is_frozen", False))


def _is_pillow(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def _listed_images(items: Any) -> Sequence[Any]:
    """Return one image or several as a sequence of images."""
    if isinstance(items, str | Path | StoredImage) or _is_pillow(items):
        return [items]
    if isinstance(items, np.ndarray | Tensor) and _kind(items) != "U":
        if items.ndim in (2, 3):
            return [items]
        if items.ndim != 4:
            raise TypeError(
                f"an array of shape {list(items.shape)} is no image [H, W], [H, W, C] or [C, H, W], nor a batch of them"
            )
    return _sequence(items, "images")


def _pixels(item: Any, name: str) -> NDArray[Any]:
    """Return an array or tensor as pixels [H, W] or [H, W, C].

    If both the first and the last dimension could be channels, an array has them last and a tensor first.
    """
    if not isinstance(item, np.ndarray | Tensor):
        raise TypeError(f"{name} is of type {type(item).__name__}; give a path, a Pillow image, an array or a tensor")
    if _kind(item) not in "biuf":
        raise TypeError(f"{name} has values of type {item.dtype}; an image has uint8, or floats in 0..1")
    first, last = (n in (1, 3, 4) for n in (item.shape[0], item.shape[-1])) if item.ndim == 3 else (False, True)
    if item.ndim not in (2, 3) or not (first or last):
        raise TypeError(f"{name} has the shape {list(item.shape)}; an image has [H, W], [H, W, C] or [C, H, W]")
    channels_first = first and (isinstance(item, Tensor) or not last)
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.is_floating_point() else item).numpy()
    return item.transpose(1, 2, 0) if channels_first else item


def _kind(values: np.ndarray | Tensor) -> str:
    """Return numpy's letter for the type of ``values``: b, i, u, f, c, U, O."""
    if isinstance(values, np.ndarray):
        return values.dtype.kind
    if values.is_complex():
        return "c"
    return "f" if values.is_floating_point() else "b" if values.dtype == torch.bool else "i"


def _texts(items: Any) -> list[str]:
    texts = [items] if isinstance(items, str) else list(_sequence(items, "texts"))
    require(len(texts) > 0, "there is nothing to read")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise TypeError(f"text {number} is of type {type(text).__name__}; give strings")
    return [str(text) for text in texts]


def _numbers(items: Any, shape: tuple[int, ...]) -> Tensor:
    """Return rows of numbers [N, *shape]. A single row, or a list of single inputs, counts as rows too."""
    if isinstance(items, Tensor):
        items = items.detach().cpu().double().numpy() if _kind(items) in "biuf" else items.numpy()
    try:
        values = np.asarray(
            items if isinstance(items, np.ndarray | int | float) else _sequence(items, "rows of numbers")
        )
    except ValueError:
        raise TypeError("rows of numbers must have one length") from None
    if values.dtype.kind not in "biuf" and values.size:
        raise TypeError(f"{shown(str(items))} is no row of numbers")
    if values.ndim == len(shape) and values.shape == shape:
        values = values[None]
    elif shape == (1,) and values.ndim <= 1:
        values = values.reshape(-1, 1)
    require(values.size > 0, "there is nothing to read")
    if values.shape[1:] != shape:
        raise TypeError(
            f"numbers of shape {list(values.shape)} are no rows of {shape[0]}, which is what the learner reads"
        )
    require(bool(np.isfinite(values).all()), "a number is not finite; a learner reads finite numbers")
    return torch.as_tensor(values.astype(np.float64), dtype=torch.get_default_dtype())


def _table_rows(items: Any) -> Tensor:
    """Return rows of any number of columns [N, C]; NaN marks a gap."""
    if isinstance(items, Tensor):
        items = items.detach().cpu().numpy()
    try:
        values = np.asarray(items if isinstance(items, np.ndarray) else _sequence(items, "rows of a table"), np.float64)
    except (TypeError, ValueError):
        raise TypeError("rows of a table must be numbers, as many in each row; NaN marks a gap") from None
    values = values[None] if values.ndim == 1 else values
    require(values.size > 0, "there is nothing to read")
    if values.ndim != 2:
        raise TypeError(f"an array of shape {list(values.shape)} is no table [rows, columns]")
    require(not np.isinf(values).any(), "a number is infinite; NaN marks a gap")
    return torch.as_tensor(values, dtype=torch.get_default_dtype())


def _sequence(items: Any, what: str) -> Sequence[Any]:
    if isinstance(items, str | bytes | bytearray | Mapping | set | frozenset) or not isinstance(items, Iterable):
        raise TypeError(f"{what} are expected, one or a sequence, not {type(items).__name__}")
    return list(items)
