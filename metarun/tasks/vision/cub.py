"""Caltech-UCSD Birds 200-2011 (Wah et al. 2011): 200 species, 11,788 photographs."""

from __future__ import annotations

from pathlib import Path

from metarun.tasks.archives import members
from metarun.tasks.vision.published import PublishedImages
from metarun.tasks.vision.sources import (
    Collection,
    archives,
    from_archive,
    from_folder,
    in_class_folders,
    refuse_missing,
)


class CUB(PublishedImages):
    """CUB with the split of Chen et al. (2019, arXiv:1904.04232), 100/50/50 species, which Torchmeta uses too.

    ``root`` is a folder or an archive with folders named as the species, at any depth, of 41 to 60 images each.
    Bounding boxes are not used. If the set's ``images.txt`` is there, every image in it must be too, unless ``whole``
    is false. For the other arguments see :class:`~metarun.tasks.vision.published.PublishedImages`.
    """

    published, title, split_by = "cub", "birds of CUB", "chen"
    folders = ("CUB_200_2011", "CUB_200_2011.tgz", "cub")
    layouts = "CUB_200_2011 (.tgz or extracted): images/<class>/*.jpg"
    url = "https://zenodo.org/records/8000562/files/CUB_200_2011.tgz"
    md5 = "97eceeb196236b17998738112f37df78"
    num_images = 11_788

    def scan(self, base: Path, files: list[str], classes: set[str]) -> Collection:
        packed, classify = archives(base, files), in_class_folders(classes)
        found = from_archive(packed[0], classify) if packed else from_folder(base, files, classify)
        found = self._nonempty(found, base)
        if self.whole:
            refuse_missing(found, images_txt(base, files), f"{base}'s images.txt")
        return found


def images_txt(base: Path, files: list[str]) -> list[str]:
    """Return the images listed in every ``images.txt`` of the archive or folder, whose lines are ``<number>
    <path>``.
    """
    if packed := archives(base, files):
        lists = {n for n, _ in members(packed[0], content=False) if Path(n).name == "images.txt"}
        texts = [file.read().decode() for _, file in members(packed[0], lists)]
    else:
        texts = [(base / name).read_text() for name in files if Path(name).name == "images.txt"]
    return [line.split()[1] for text in texts for line in text.splitlines() if len(line.split()) == 2]
