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
