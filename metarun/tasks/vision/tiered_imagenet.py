"""tieredImageNet (Ren et al. 2018, arXiv:1803.00676): 608 classes, whose categories are in one split each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import UserError, require
from metarun.tasks.pickles import load_pickle
from metarun.tasks.vision.base import ImageFewShot
from metarun.tasks.vision.collection import (
    Collection,
    Source,
    archives,
    from_archive,
    from_folder,
    load_published,
    locate,
    merge,
    split_of,
    wordnet_id,
)
from metarun.types import Count, DataPath, NonNegative, Positive, Resize

IMAGES = 779_165
"""Of all classes; there are 732 to 1300 of each."""
FOLDERS = ("tiered_imagenet", "tiered-imagenet", "tieredImageNet", "TieredImagenet")
LAYOUTS = "{train,val,test}_images_png.pkl and _labels.pkl, or images in folders named by WordNet ids"
PICKLE = re.compile(r"(.*(?:train|val|validation|test))_images_png\.pkl")


class TieredImageNet(ImageFewShot):
    """tieredImageNet: 351/97/160 classes of 20/6/8 categories.

    ``root`` is a folder, directly or under ``tiered_imagenet`` (where null: METARUN_DATA, the cache), of Ren et
    al.'s pickles of PNG images and labels, which are read without running code, one split at a time; or of images
    that lie, at any depth, in folders named by WordNet ids (also in an archive). The decoded images take 16.5 GB at
    84 pixels: they stay in the mapped cache on the CPU, and must fit on a GPU that trains. The rest is as in
    :class:`~metarun.tasks.vision.mini_imagenet.MiniImageNet`.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: DataPath | None,
        way: Positive,
        shot: Positive,
        query: Count,
        test_ways: Sequence[Positive],
        size: Positive,
        resize: Resize,
        whole: bool,
        crop: Count,
        flip: bool,
        jitter: NonNegative,
    ) -> None:
        base = locate(root, FOLDERS, LAYOUTS)
        if base is None:
            raise UserError(
                f"tieredImageNet is not found: put {LAYOUTS} into METARUN_DATA/tiered_imagenet, or name their folder "
                "with task.root"
            )
        data, classes = load_published(
            "tiered_imagenet",
            base,
            lambda files, _: collected(base, files),
            size=size,
            whole=whole,
            resize=resize,
            total=IMAGES,
        )
        self.preprocessing = {"size": size, "resize": resize, "whole": whole}
        self.resize, self.crop, self.flip, self.jitter = resize, crop, flip, jitter
        shape = {"way": way, "shot": shot, "query": query, "test_ways": test_ways}
        super().__init__(data, classes, seed=seed, name="tiered_imagenet", input_shape=(3, size, size), **shape)  # type: ignore[arg-type]

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self.preprocessing, **self.augmentation()}


def collected(base: Path, files: Sequence[str]) -> Collection:
    """The images in whichever layout ``base`` has; ``files`` are all paths below it."""
    pickles = [(name, match[1]) for name in files if (match := PICKLE.fullmatch(name))]
    if pickles and not base.is_file():
        return merge([from_pickles(base / name, base / f"{stem}_labels.pkl") for name, stem in pickles])
    packed = [from_archive(path, wordnet_id) for path in archives(base, files)]
    found = merge(packed) if packed else from_folder(base, [] if base.is_file() else files, wordnet_id)
    require(bool(found.classes), f"{base}: holds no tieredImageNet; it must hold {LAYOUTS}")
    return found


def from_pickles(images: Path, labels: Path) -> Collection:
    """One split: a list of PNG images as arrays of bytes, and ``{"label_specific", "label_specific_str", ...}``.

    Labels are numbered within the split, and named by English words, not by WordNet ids.
    """
    home = split_of(images.name)
    require(labels.is_file(), f"{labels}: no such file, and {images.name} says no labels")
    content = load_pickle(labels)
    numbers = content.get("label_specific") if isinstance(content, dict) else None
    require(
        isinstance(numbers, np.ndarray | list) and len(numbers) > 0, f"{labels}: has no label_specific, one an image"
    )
    numbers = np.asarray(numbers, dtype=np.int64)
    words = content.get("label_specific_str") or []
    classes = {
        f"{home}/{n:03}{' ' + str(words[n]) if n < len(words) else ''}": [
            f"{images}: image {i}" for i in np.flatnonzero(numbers == n)
        ]
        for n in np.unique(numbers)
    }

    def read() -> Iterator[tuple[str, Source]]:
        found = load_pickle(images)
        held = len(found) if isinstance(found, list) else 0
        require(held == len(numbers), f"{images}: holds {held} images, but {labels.name} {len(numbers)} labels")
        for i in range(held):
            image, found[i] = found[i], None  # what is decoded is let go
            yield f"{images}: image {i}", image.encode("latin1") if isinstance(image, str) else image

    return Collection(classes, read, dict.fromkeys(classes, home) if home else {})
