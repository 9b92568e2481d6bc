"""Few-shot sets made of CIFAR-100: CIFAR-FS (Bertinetto et al. 2019) and FC100 (Oreshkin et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import require
from metarun.tasks.archives import members
from metarun.tasks.files import download
from metarun.tasks.pickles import load_pickle, read_pickle
from metarun.tasks.vision.base import ImageFewShot
from metarun.tasks.vision.collection import (
    Collection,
    archives,
    from_archive,
    from_arrays,
    from_folder,
    load_published,
    locate,
)
from metarun.types import Count, DataPath, NonNegative, Positive

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
IMAGES = 600
"""A class: 500 of CIFAR-100's training images and 100 of its test images, which all are used."""
LAYOUTS = "cifar-100-python (.tar.gz or extracted), or images in folders named as CIFAR-100's classes"
PARTS = ("train", "test", "meta")
"""The files of cifar-100-python."""


class Cifar100(ImageFewShot):
    """CIFAR-100's 60,000 images of 32 pixels in 100 classes, split for few-shot learning as ``published`` says.

    ``root`` is a folder or an archive: ``cifar-100-python`` (its pickles are read without running code), or images
    that lie, at any depth, in folders named as the classes, as CIFAR-FS and FC100 were published (``data/<class>/``,
    ``{train,val,test}/<class>/``). Null: METARUN_DATA, the cache, or a download of CIFAR-100. ``size`` is 32 for the
    images as they are. ``whole: false`` takes a part of the data set too. ``crop``, ``flip`` and ``jitter`` change
    meta-training images (:class:`ImageFewShot`).
    """

    published: str
    resize = "squash"

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
        whole: bool,
        crop: Count,
        flip: bool,
        jitter: NonNegative,
    ) -> None:
        places = (self.published, self.published.replace("_", "-"), "cifar100", "cifar-100", "cifar-100-python")
        base = locate(root, (*places, "cifar-100-python.tar.gz"), LAYOUTS)
        if base is None:
            base = download(URL, f"md5:{MD5}", "cifar-100-python.tar.gz")
        data, classes = load_published(
            self.published,
            base,
            lambda files, listed: collected(base, files, set(listed)),
            size=size,
            whole=whole,
            each=IMAGES,
            store="cifar100",
        )
        self.preprocessing = {"size": size, "whole": whole}
        self.crop, self.flip, self.jitter = crop, flip, jitter
        shape = {"way": way, "shot": shot, "query": query, "test_ways": test_ways}
        super().__init__(data, classes, seed=seed, name=self.published, input_shape=(3, size, size), **shape)  # type: ignore[arg-type]

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self.preprocessing, **self.augmentation()}


class CifarFS(Cifar100):
    """CIFAR-FS (Bertinetto et al. 2019, arXiv:1805.08136): 64/16/20 classes drawn at random."""

    published = "cifar_fs"


class FC100(Cifar100):
    """FC100 (Oreshkin et al. 2018, arXiv:1805.10123): 60/20/20 classes; no superclass is in two splits."""

    published = "fc100"


def collected(base: Path, files: Sequence[str], classes: set[str]) -> Collection:
    """The images in whichever layout ``base`` has; ``files`` are all paths below it."""

    def classify(name: str) -> str | None:
        label = Path(name).parent.name
        return label if label in classes else None

    for folder in sorted({Path(name).parent for name in files}):
        if {(folder / part).as_posix() for part in PARTS} <= set(files):
            return from_pickles({part: load_pickle(base / folder / part) for part in PARTS}, str(base / folder))
    for path in archives(base, files):
        names = {n for n, _ in members(path, content=False)}
        inside = {n for n in names if Path(n).name in PARTS and Path(n).parent.name == "cifar-100-python"}
        if len(inside) == len(PARTS):
            contents = {Path(n).name: read_pickle(file, f"{path}/{n}") for n, file in members(path, inside)}
            return from_pickles(contents, str(path))
        found = from_archive(path, classify)
        if found.classes:
            return found
    found = from_folder(base, [] if base.is_file() else files, classify)
    require(bool(found.classes), f"{base}: holds no CIFAR-100; it must hold {LAYOUTS}")
    return found


def from_pickles(contents: dict[str, Any], name: str) -> Collection:
    """CIFAR-100's three files: ``data`` [N, 3072] red, green, blue planes, ``fine_labels``, and the labels' names."""
    wrong = f"{name}: not CIFAR-100 as published (data, fine_labels, fine_label_names)"
    require(all(isinstance(content, dict) for content in contents.values()), wrong)
    words = contents["meta"].get("fine_label_names")
    require(isinstance(words, list) and len(words) == 100, wrong)
    images, labels = [], []
    for part in ("train", "test"):
        data, fine = contents[part].get("data"), contents[part].get("fine_labels")
        shaped = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3072,)
        require(shaped and isinstance(fine, list) and len(fine) == len(data), wrong)
        require(all(type(n) is int and 0 <= n < 100 for n in fine), wrong)
        images.append(np.asarray(data).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += fine
    numbers = np.array(labels)
    classes = {str(word): np.flatnonzero(numbers == n) for n, word in enumerate(words) if (numbers == n).any()}
    return from_arrays(name, classes, np.concatenate(images), None)
