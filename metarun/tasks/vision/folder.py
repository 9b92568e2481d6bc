"""Few-shot classification of the user's own images: one folder a class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.errors import UserError, require
from metarun.tasks.fewshot import ClassData, split_classes
from metarun.tasks.files import Allocate, mapped
from metarun.tasks.vision.base import ImageFewShot
from metarun.tasks.vision.images import ENDINGS, decode, read_image
from metarun.types import SPLITS, Count, Fraction, NonNegative, Positive, Split


class Folder(ImageFewShot):
    """Images in ``root/<class>/`` or, with the user's own split, in ``root/{train,val,test}/<class>/``.

    Without an own split, ``val`` and ``test`` are fractions of the classes, drawn with ``split_seed``. Any
    size and mode is read: an image is turned upright (EXIF), laid on white where transparent, cropped to its
    middle square, and resized to ``size`` pixels, rgb or grey as ``colour`` says. ``augment`` is the strength
    of the random affine maps of meta-training images, 0 for none; ``crop``, ``flip`` and ``jitter`` change them too
    (:class:`ImageFewShot`).

    Decoded once into the cache, and again when a file is added, removed or changed. Raises
    :class:`~metarun.errors.UserError` for a missing or empty folder, an unreadable image, too few classes, or
    a class with too few images.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        way: Positive,
        shot: Positive,
        query: Count,
        test_ways: Sequence[Positive],
        size: Positive,
        colour: Literal["rgb", "grey"],
        val: Fraction,
        test: Fraction,
        split_seed: int,
        augment: NonNegative,
        crop: Count,
        flip: bool,
        jitter: NonNegative,
    ) -> None:
        require(root is not None, "task.root is not set: name the folder that holds one folder of images a class")
        base = Path(str(root)).expanduser()
        require(base.is_dir(), f"task.root={root}: {'not a folder' if base.exists() else 'no such folder'}")
        own = (base / "train").is_dir()
        homes: tuple[Split, ...] = SPLITS if own else ("train",)
        found = {split: list_classes(base / split if own else base) for split in homes}
        refuse_shared_classes(found)
        folders = [(split, name, files) for split in homes for name, files in found[split].items()]
        files = [file for _, _, each in folders for file in each]

        self.size, self.colour, self.augment = size, colour, augment
        self.crop, self.flip, self.jitter = crop, flip, jitter
        data = ClassData(
            torch.from_numpy(load(base, files, size, colour)),
            np.cumsum([0, *(len(each) for _, _, each in folders)]),
            [name for _, name, _ in folders],
        )
        home = np.array([split for split, _, _ in folders])
        classes: dict[Split, NDArray[np.int64]]
        if own:
            self.partition: dict[str, Any] = {"split": "own"}
            classes = {split: np.flatnonzero(home == split) for split in SPLITS}
        else:
            self.partition = {"split": "random", "split_seed": split_seed}
            classes = split_classes(range(len(folders)), val=val, test=test, seed=split_seed)
            for split in SPLITS:
                require(
                    len(classes[split]) >= way,
                    f"task.root={root}: {len(folders)} classes leave {len(classes[split])} for '{split}', "
                    f"too few for task.way={way}; lower it, change task.val or task.test, or add classes",
                )
        shape = {"way": way, "shot": shot, "query": query, "test_ways": test_ways}
        super().__init__(data, classes, seed=seed, name=base.name, **shape)  # type: ignore[arg-type]

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            **self.partition,
            "size": self.size,
            "colour": self.colour,
            "augment": self.augment,
            **self.augmentation(),
        }


def list_classes(folder: Path) -> dict[str, list[Path]]:
    """Class -> its image files, both sorted; hidden ones are skipped."""
    require(folder.is_dir(), f"{folder}: no such folder (beside train/, there must be val/ and test/)")
    classes = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        images = [
            file for file in sorted(entry.iterdir()) if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
        ]
        require(bool(images), f"{entry}: no images in this class's folder ({', '.join(e[1:] for e in ENDINGS)})")
        classes[entry.name] = images
    require(bool(classes), f"{folder}: holds no folders; it must hold one folder of images a class")
    return classes


def refuse_shared_classes(found: Mapping[Split, Mapping[str, Sequence[Path]]]) -> None:
    """A class in two splits would be judged on what was trained on."""
    for split, other in combinations(found, 2):
        for name in sorted(found[split].keys() & found[other].keys()):
            raise UserError(f"class '{name}' is in both {split}/ and {other}/; remove one")


def load(base: Path, files: Sequence[Path], size: int, colour: str) -> NDArray[np.uint8]:
    """The images [N, 1 or 3, size, size], from the cache unless a file's name, size or time has changed."""
    from PIL import __version__ as pillow

    stats = [(os.fspath(file.relative_to(base)), file.stat()) for file in files]
    key = {
        "format": 2,
        "root": os.fspath(base.resolve()),
        "size": size,
        "colour": colour,
        "pillow": pillow,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }

    def build(allocate: Allocate) -> dict[str, Any]:
        x = allocate((len(files), 1 if colour == "grey" else 3, size, size))
        decode(enumerate(files), lambda file: read_image(file, size, colour), x, f"decoding {base.name}")
        return {}

    return mapped("folder", key, build)[0]
