"""Cards of pretrained image models: the preprocessing of the images that the weights were trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.errors import UserError, require

CARD = "config.json"
"""File beside the weights that holds the card, as in repositories of timm on the Hugging Face hub."""
PROCESSOR = "preprocessor_config.json"
"""File that holds the card of a model of transformers."""
RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of resampling filters; others are replaced by bicubic."""


@dataclass(frozen=True)
class Card:
    """Preprocessing that weights expect. Values that a card does not state are ``None``.

    Attributes:
        mean: Mean of each colour in 0..1.
        std: Deviation of each colour.
        size: Height and width in pixels.
        interpolation: Name of the interpolation of resizing.
        architecture: Name of the network.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    interpolation: str | None = None
    architecture: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Card:
        """Return the card that values in timm's form state: mean, std, input_size, interpolation, architecture.

        Raises:
            ValueError, TypeError: A value has another form.
        """
        mean, std, shape = values.get("mean"), values.get("std"), values.get("input_size")
        if std is not None and not all(float(value) > 0 for value in std):
            raise ValueError(f"std is {std}; all must be above 0")
        if shape is not None and (len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape)):
            raise ValueError(f"input_size is {shape}, not channels, height and width")
        return cls(
            None if mean is None else tuple(map(float, mean)),
            None if std is None else tuple(map(float, std)),
            None if shape is None else (shape[1], shape[2]),
            values.get("interpolation"),
            values.get("architecture"),
        )


def read_card(folder: Path, where: str) -> Card | None:
    """Return the card in a folder; ``None`` if it has none.

    Args:
        folder: Folder of the weights.
        where: Configuration key and value, for messages.

    Raises:
        UserError: The card is damaged.
    """
    file = folder / CARD
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        stated = {**values, **values.get("pretrained_cfg", {})}
        require("mean" in stated and "std" in stated, "it has no mean and std")
        return Card.of(stated)
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{where}: {file} is no card of an image model ({str(error)[:120]})") from None


def processor_card(folder: Path, where: str) -> Card:
    """Return the card in the image processor's configuration of a model of transformers.

    Pixels of 0..255 that the processor rescales by another factor than 1/255, or not at all, are allowed for in mean
    and deviation, which are those of colours in 0..1.

    Args:
        folder: Folder of the model.
        where: Configuration key and value, for messages.

    Raises:
        UserError: There is no card, or it is damaged.
    """
    file = folder / PROCESSOR
    require(file.is_file(), f"{where}: has no {PROCESSOR}, which says how images are prepared")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        scale = 255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
        stated = values.get("do_normalize", True)
        mean, std = (values[key] if stated else default for key, default in (("image_mean", 0.0), ("image_std", 1.0)))
        mean, std = (each if isinstance(each, list) else [each] * 3 for each in (mean, std))
        shape = values.get("crop_size") if values.get("do_center_crop") else values.get("size")
        if isinstance(shape, dict):
            edge = shape.get("shortest_edge")
            shape = [shape.get("height", edge), shape.get("width", edge)]
        elif shape is not None:
            shape = [shape, shape] if isinstance(shape, int) else [*shape]
        return Card.of({
            "mean": [float(each) / scale for each in mean],
            "std": [float(each) / scale for each in std],
            "input_size": None if shape is None else [len(mean), *shape],
            "interpolation": RESAMPLING.get(values.get("resample", 2), "bicubic"),
        })  # fmt: skip
    except KeyError as error:
        raise UserError(f"{where}: {file} has no {error.args[0]}") from None
    except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{where}: {file} is no card of an image model ({str(error)[:120]})") from None
