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
    """CUB by Chen et al.'s split (2019, arXiv:1904.04232) of 100/50/50 species, which Torchmeta uses too.

    ``root`` is a folder or an archive that holds, at any depth, folders named as the species, of 41 to 60 images each.
    Bounding boxes are not used. Every image that the set's own ``images.txt`` names must be there where that is, unless
    ``whole`` is false. The other arguments are those of :class:`~metarun.tasks.vision.published.PublishedImages`.
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
        found = self._some(found, base)
        if self.whole:
            refuse_missing(found, images_txt(base, files), f"{base}'s images.txt")
        return found


def images_txt(base: Path, files: list[str]) -> list[str]:
    """Images that every ``images.txt`` in the archive or folder names, a line ``<number> <path>`` each."""
    if packed := archives(base, files):
        lists = {n for n, _ in members(packed[0], content=False) if Path(n).name == "images.txt"}
        texts = [file.read().decode() for _, file in members(packed[0], lists)]
    else:
        texts = [(base / name).read_text() for name in files if Path(name).name == "images.txt"]
    return [line.split()[1] for text in texts for line in text.splitlines() if len(line.split()) == 2]
