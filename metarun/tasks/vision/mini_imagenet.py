"""mini-ImageNet (Vinyals et al. 2016; the split of Ravi & Larochelle 2017): 100 classes, 600 images each."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import UserError, require
from metarun.tasks import parquet
from metarun.tasks.archives import members
from metarun.tasks.pickles import load_pickle, read_pickle
from metarun.tasks.vision.published import PublishedImages
from metarun.tasks.vision.sources import (
    Collection,
    archives,
    from_archive,
    from_arrays,
    from_folder,
    merge,
    refuse_missing,
    split_of,
    wordnet_id,
)
from metarun.tasks.vision.stored_images import images
from metarun.types import Split

PICKLE = re.compile(r"(mini-?imagenet-cache-(train|val|validation|test)|"
                    r"miniImageNet_category_split_(train_phase_train|val|test))\.(pkl|pickle)", re.I)  # fmt: skip


class MiniImageNet(PublishedImages):
    """mini-ImageNet with Ravi & Larochelle's split of 64/16/20 classes.

    ``root`` holds any of the public layouts; if there are several, the first of these is read:

    - pickles ``mini-imagenet-cache-{train,val,test}.pkl`` (Ren et al. 2018) or ``miniImageNet_category_split_*.pickle``
      (Lee et al. 2019), read without running code;
    - parquet files as on the Hugging Face hub (extra ``parquet``);
    - an archive of pickles or of images;
    - images named ``<wnid><8 digits>.jpg``, or in folders named by WordNet ids, at any depth.

    If Ravi & Larochelle's ``train.csv``, ``val.csv`` and ``test.csv`` are there too, every image that they list must be
    there. Ravi & Larochelle resized whole images to 84 pixels (``resize: squash``), and the pickles hold them so. For
    the other arguments see :class:`~metarun.tasks.vision.published.PublishedImages`.
    """

    published, title, split_by = "mini_imagenet", "mini-ImageNet", "ravi"
    folders = ("mini_imagenet", "mini-imagenet", "miniimagenet", "miniImageNet", "MiniImagenet")
    layouts = (
        "mini-imagenet-cache-{train,val,test}.pkl, a .tar, .tar.gz or .zip, .parquet files, or images "
        "<wnid><8 digits>.jpg"
    )
    num_images_per_class = 600

    def scan(self, base: Path, files: list[str], classes: set[str]) -> Collection:
        pickles = [name for name in files if PICKLE.fullmatch(Path(name).name)]
        if pickles:
            paths = (base if base.is_file() else base / name for name in pickles)
            return merge([from_pickle(load_pickle(path), str(path)) for path in paths])
        tables = [name for name in files if name.endswith(parquet.ENDING)]
        if tables:
            return from_parquet(base, tables)
        packed = archives(base, files)
        if packed:
            return merge([self._nonempty(from_packed(path), path) for path in packed])
        found = self._nonempty(from_folder(base, files, wordnet_id), base)
        listed = [base / name for name in files if Path(name).name in ("train.csv", "val.csv", "test.csv")]
        return _by_tables(found, listed) if listed else found


def from_packed(path: Path) -> Collection:
    """Collect the images of an archive: from its pickles if it has any, else from its image files."""
    parts = [
        from_pickle(read_pickle(file, f"{path}/{name}"), f"{path}/{name}")
        for name, file in members(path, {n for n, _ in members(path, content=False) if PICKLE.fullmatch(Path(n).name)})
    ]
    return merge(parts) if parts else from_archive(path, wordnet_id)


def from_pickle(content: Any, name: str) -> Collection:
    """Collect one split from ``{"image_data", "class_dict"}`` or ``{"data", "labels", "catname2label"}``."""
    home = split_of(Path(name).name)
    require(isinstance(content, dict), f"{name}: not a dictionary, the form of mini-ImageNet's files")
    images = content.get("image_data", content.get("data"))
    places: dict[str, Any] | None = content.get("class_dict")
    if places is None and "labels" in content:
        labels = np.asarray(content["labels"])
        words = {int(label): str(word) for word, label in (content.get("catname2label") or {}).items()}
        unnamed = f"{home}/{{}}"
        places = {words.get(int(n), unnamed.format(int(n))): np.flatnonzero(labels == n) for n in np.unique(labels)}
    require(
        isinstance(images, np.ndarray) and images.ndim == 4 and isinstance(places, dict),
        f"{name}: has neither image_data and class_dict nor data and labels",
    )
    classes = {str(label): np.asarray(each, dtype=np.int64) for label, each in (places or {}).items()}
    inside = all(len(each) == 0 or (each.min() >= 0 and each.max() < len(images)) for each in classes.values())
    require(inside, f"{name}: its classes refer to images beyond its {len(images)}")
    return from_arrays(name, classes, np.asarray(images), home)


def from_parquet(base: Path, files: Sequence[str]) -> Collection:
    """Collect images from parquet files, one split a file, with columns ``image`` {bytes, path} and ``label``.

    Labels are numbers or names; numbers are named by the schema's list of names if it has one.
    """
    parts: dict[str, list[tuple[Path, int]]] = {}
    homes: dict[str, Split] = {}
    for name in files:
        path = base if base.is_file() else base / name
        home = split_of(name)
        require(home is not None, f"{path}: its name says neither train nor val nor test")
        _, classes = parquet.labels(path, "label", required=True, unnamed=f"{home}/{{}}")
        for row, label in enumerate(map(str, classes)):
            if homes.setdefault(label, home) != home:  # type: ignore[arg-type]
                raise UserError(f"{path}: class '{label}' is in both '{homes[label]}' and '{home}'")
            parts.setdefault(label, []).append((path, row))

    named = {label: [f"{path}: row {row}" for path, row in rows] for label, rows in sorted(parts.items())}

    def read() -> Any:
        for path in dict.fromkeys(path for rows in parts.values() for path, _ in rows):
            for row, image in enumerate(images(path, limit=None)):
                yield f"{path}: row {row}", image.content

    return Collection(named, read, homes)


def _by_tables(found: Collection, tables: Sequence[Path]) -> Collection:
    """Return ``found`` if all images listed in Ravi & Larochelle's tables (filename, label) are in it, else raise an
    error.
    """
    listed: list[str] = []
    for table in tables:
        with table.open(newline="") as file:
            listed += [row["filename"] for row in csv.DictReader(file) if row.get("filename")]
    refuse_missing(found, listed, f"{tables[0].parent}/*.csv")
    return found
