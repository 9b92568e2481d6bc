"""tieredImageNet (Ren et al. 2018, arXiv:1803.00676): 608 classes; each high-level category is in one split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metarun.errors import require
from metarun.tasks.pickles import load_pickle
from metarun.tasks.vision.images import Source
from metarun.tasks.vision.published import PublishedImages
from metarun.tasks.vision.sources import Collection, archives, from_archive, from_folder, merge, split_of, wordnet_id

PICKLE = re.compile(r"(.*(?:train|val|validation|test))_images_png\.pkl")


class TieredImageNet(PublishedImages):
    """tieredImageNet: 351/97/160 classes of 20/6/8 categories, 732 to 1300 images each.

    ``root`` holds Ren et al.'s pickles of PNG images and labels, which are read without running code, one split at a
    time; or images in folders named by WordNet ids, at any depth, also in an archive. The decoded images take 16.5 GB
    at 84 pixels: they stay in a memory-mapped cache on the CPU, and must fit into a GPU that trains on them. For the
    other arguments see :class:`~metarun.tasks.vision.published.PublishedImages`.
    """

    published, title = "tiered_imagenet", "tieredImageNet"
    folders = ("tiered_imagenet", "tiered-imagenet", "tieredImageNet", "TieredImagenet")
    layouts = "{train,val,test}_images_png.pkl and _labels.pkl, or images in folders named by WordNet ids"
    num_images = 779_165

    def scan(self, base: Path, files: list[str], classes: set[str]) -> Collection:
        pickles = [(name, match[1]) for name in files if (match := PICKLE.fullmatch(name))]
        if pickles and not base.is_file():
            return merge([from_pickles(base / name, base / f"{stem}_labels.pkl") for name, stem in pickles])
        packed = [from_archive(path, wordnet_id) for path in archives(base, files)]
        found = merge(packed) if packed else from_folder(base, [] if base.is_file() else files, wordnet_id)
        return self._nonempty(found, base)


def from_pickles(images: Path, labels: Path) -> Collection:
    """Collect one split: a list of PNG images as byte arrays, and ``{"label_specific", "label_specific_str", ...}``.

    Labels are numbered within the split and named by English words, not by WordNet ids.
    """
    home = split_of(images.name)
    require(labels.is_file(), f"{labels}: no such file; it holds the labels of {images.name}")
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
            image, found[i] = found[i], None  # frees each image once it is read
            yield f"{images}: image {i}", image.encode("latin1") if isinstance(image, str) else image

    return Collection(classes, read, dict.fromkeys(classes, home) if home else {})
