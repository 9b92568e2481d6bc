"""Types of configuration values. A constructor's annotations are its schema, including ranges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Annotated, Any, Literal

from annotated_types import Interval

Count = Annotated[int, Interval(ge=0, le=2**31 - 1)]  # 0, 1, 2, ...; sizes that every library can hold
Positive = Annotated[int, Interval(ge=1, le=2**31 - 1)]  # 1, 2, ...
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
Rate = Annotated[float, Interval(gt=0, lt=inf)]  # a positive real, such as a learning rate
NonNegative = Annotated[float, Interval(ge=0, lt=inf)]
Fraction = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class IsPath:
    """Mark of keys that hold a path. They are stored as absolute paths and may be changed if data have moved.

    Attributes:
        always: False if a value may also be something else, such as a name; it is then a path if it exists.
    """

    always: bool = True


DataPath = Annotated[str, IsPath()]
PathOrName = Annotated[str, IsPath(always=False)]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
NormPolicy = Literal["transductive", "support", "running", "frozen"]
Decay = Literal["linear", "cosine"]
Interpolation = Literal["bilinear", "bicubic"]
"""Interpolation of images that are resized, with antialiasing."""
Tune = Literal["frozen", "norm", "lora", "all"]
"""Weights of an encoder that are trained.

``frozen``: none, each input is embedded once. ``norm``: scales and shifts of the normalisation layers. ``lora``:
low-rank updates of linear and convolution layers (:class:`~metarun.models.lowrank.LowRankLayer`; Hu et al. 2022,
arXiv:2106.09685), which start at 0. ``all``: all weights. With ``norm`` and ``lora`` the other weights are not stored
in checkpoints.
"""
Precision = Literal["float32", "float64", "bfloat16", "tf32"]
Distance = Literal["euclidean", "cosine"]
ImportPath = Annotated[str, "the import path of code that is run"]
Resize = Literal["crop", "squash"]  # the middle square, or the whole image
Resizing = Literal["crop", "squash", "nearest", "antialias"]
Ink = Literal["light", "dark"]
Episodes = Literal["balanced", "varied"]


@cache
def strictly(annotation: Any) -> Any:
    """Return a validator that accepts only values of this type, without conversion."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(strict=True))
