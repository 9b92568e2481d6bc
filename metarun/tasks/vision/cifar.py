"""Few-shot sets made of CIFAR-100: CIFAR-FS (Bertinetto et al. 2019) and FC100 (Oreshkin et al. 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import require
from metarun.tasks.archives import members
from metarun.tasks.pickles import load_pickle, read_pickle
from metarun.tasks.vision.published import PublishedImages
from metarun.tasks.vision.sources import (
    Collection,
    archives,
    from_archive,
    from_arrays,
    from_folder,
    in_class_folders,
)

PARTS = ("train", "test", "meta")
"""The files of cifar-100-python."""
SHARED = ("cifar100", "cifar-100", "cifar-100-python", "cifar-100-python.tar.gz")
"""Folders and files that hold CIFAR-100 itself."""


class Cifar100(PublishedImages):
    """The 60,000 images of CIFAR-100, 32 pixels wide, in 100 classes; training and test images are merged and split by
    class.

    ``root`` is a folder or an archive: ``cifar-100-python`` (its pickles are read without running code), or images in
    folders named as the classes, at any depth, as CIFAR-FS and FC100 were published (``data/<class>/``,
    ``{train,val,test}/<class>/``). ``size: 32`` keeps the images as they are. For the other arguments see
    :class:`~metarun.tasks.vision.published.PublishedImages`.
    """

    title, square = "CIFAR-100", True
    layouts = "cifar-100-python (.tar.gz or extracted), or images in folders named as CIFAR-100's classes"
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    md5 = "eb9058c3a382ffc7106e4002c42a8d85"
    num_images_per_class, shared_cache = 600, "cifar100"

    def scan(self, base: Path, files: list[str], classes: set[str]) -> Collection:
        classify = in_class_folders(classes)
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
        return self._nonempty(from_folder(base, [] if base.is_file() else files, classify), base)


class CifarFS(Cifar100):
    """CIFAR-FS (Bertinetto et al. 2019, arXiv:1805.08136): 64/16/20 classes drawn at random."""

    published, folders = "cifar_fs", ("cifar_fs", "cifar-fs", *SHARED)


class FC100(Cifar100):
    """FC100 (Oreshkin et al. 2018, arXiv:1805.10123): 60/20/20 classes; no superclass is in two splits."""

    published, folders = "fc100", ("fc100", *SHARED)


def from_pickles(contents: dict[str, Any], name: str) -> Collection:
    """Collect CIFAR-100 from its three files.

    They hold ``data`` [N, 3072] (red, green and blue planes), ``fine_labels``, and ``fine_label_names``.
    """
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
