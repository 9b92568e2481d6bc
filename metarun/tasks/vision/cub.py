"""Caltech-UCSD Birds 200-2011 (Wah et al. 2011): 200 species, 11,788 photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun.errors import require
from metarun.tasks.archives import members
from metarun.tasks.files import download
from metarun.tasks.vision.base import ImageFewShot
from metarun.tasks.vision.collection import (
    Collection,
    archives,
    from_archive,
    from_folder,
    load_published,
    locate,
    refuse_missing,
)
from metarun.types import Count, DataPath, NonNegative, Positive, Resize

URL = "https://zenodo.org/records/8000562/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"
IMAGES = 11_788
"""Of all classes; there are 41 to 60 of each."""
FOLDERS = ("CUB_200_2011", "CUB_200_2011.tgz", "cub")
LAYOUTS = "CUB_200_2011 (.tgz or extracted): images/<class>/*.jpg"


class CUB(ImageFewShot):
    """CUB by Chen et al.'s split (2019, arXiv:1904.04232) of 100/50/50 species, which Torchmeta uses too.

    ``root`` is a folder or an archive that holds, at any depth, folders named as the species; null: METARUN_DATA,
    the cache, or a download. Images are brought to ``size`` pixels by their middle square (``crop``) or whole
    (``squash``); bounding boxes are not used. Every image that the set's own ``images.txt`` names must be there where
    that is. The rest is as in :class:`~metarun.tasks.vision.mini_imagenet.MiniImageNet`.
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
        base = locate(root, FOLDERS, LAYOUTS) or download(URL, f"md5:{MD5}", "CUB_200_2011.tgz")
        data, classes = load_published(
            "cub",
            base,
            lambda files, listed: collected(base, files, set(listed), whole),
            size=size,
            whole=whole,
            resize=resize,
            total=IMAGES,
        )
        self.preprocessing = {"size": size, "resize": resize, "whole": whole}
        self.resize, self.crop, self.flip, self.jitter = resize, crop, flip, jitter
        shape = {"way": way, "shot": shot, "query": query, "test_ways": test_ways}
        super().__init__(data, classes, seed=seed, name="cub", input_shape=(3, size, size), **shape)  # type: ignore[arg-type]

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "split": "chen", **self.preprocessing, **self.augmentation()}


def collected(base: Path, files: Sequence[str], classes: set[str], whole: bool) -> Collection:
    """The images in a folder or archive, all of the set's own list if ``whole``; ``files`` are all paths below it."""

    def classify(name: str) -> str | None:
        label = Path(name).parent.name
        return label if label in classes else None

    packed = archives(base, files)
    found = from_archive(packed[0], classify) if packed else from_folder(base, files, classify)
    require(bool(found.classes), f"{base}: holds no birds of CUB; it must hold {LAYOUTS}")
    if whole:
        if packed:
            lists = {n for n, _ in members(packed[0], content=False) if Path(n).name == "images.txt"}
            texts = [file.read().decode() for _, file in members(packed[0], lists)]
        else:
            texts = [(base / name).read_text() for name in files if Path(name).name == "images.txt"]
        named = [line.split()[1] for text in texts for line in text.splitlines() if len(line.split()) == 2]
        refuse_missing(found, named, f"{base}'s images.txt")
    return found
