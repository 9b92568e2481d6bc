"""The base class of published image sets, their splits, and the check that the data are complete."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metarun.errors import UserError, require
from metarun.tasks.files import download
from metarun.tasks.vision.base import ImageFewShot
from metarun.tasks.vision.collection import ImageSet
from metarun.tasks.vision.images import NAMED
from metarun.tasks.vision.sources import Collection, locate
from metarun.types import SPLITS, Count, DataPath, Episodes, NonNegative, Positive, Resize, Split

log = logging.getLogger("metarun")

HINT = "; fetch it again, or take what is there with task.whole=false"
"""Remedy in every message about missing data."""


class PublishedImages(ImageFewShot):
    """Few-shot classification of a published image set with its published split of classes.

    A data set is a subclass with the class attributes below, the method :meth:`scan` and a file
    ``splits/<published>.txt``, whose lines are ``<split> <class> [<superclass>]``.

    Args:
        seed: Seed of the episodes.
        root: Folder or file of the data; ``None``: the first of ``folders`` in METARUN_DATA or the cache, else a
            download.
        way: Classes of an episode.
        shot: Support images of a class.
        query: Query images of a class.
        test_ways: Further ways to test.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
            (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.
        size: Height and width in pixels.
        whole: If false, an incomplete copy of the data is accepted.
        crop: Padding of random crops of meta-training images, in pixels; see
            :class:`~metarun.tasks.vision.base.ImageFewShot`, also for ``flip`` and ``jitter``.
        flip: Random mirroring.
        jitter: Strength of random brightness, contrast and saturation.
        resize: ``squash`` resizes the whole image, ``crop`` its centre square.

    Attributes:
        published: Name of the set in METARUN_DATA, in protocols and of its class list.
        title: Name of the set in messages.
        folders: Folders and files searched in METARUN_DATA and the cache, in this order.
        layouts: Description of the layouts that :meth:`scan` reads.
        url: Download address; ``None`` if the owner does not allow downloads.
        md5: Checksum of the download.
        num_images: Number of images of the complete set; ``None``: not checked.
        num_images_per_class: Number of images of every class; ``None``: not checked, or classes differ.
        split_by: Author of the split, for protocols, if several splits are in use.
        shared_cache: Name of the cache that sets of the same images share.
        square: True if all images are square, so that ``resize`` has no effect and protocols omit it.
    """

    published: ClassVar[str]
    title: ClassVar[str]
    folders: ClassVar[Sequence[str]]
    layouts: ClassVar[str]
    url: ClassVar[str | None] = None
    md5: ClassVar[str] = ""
    num_images: ClassVar[int | None] = None
    num_images_per_class: ClassVar[int | None] = None
    split_by: ClassVar[str | None] = None
    shared_cache: ClassVar[str | None] = None
    square: ClassVar[bool] = False

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
        resize: Resize,
        unknown: Count,
        episodes: Episodes,
    ) -> None:
        base = locate(root, self.folders, self.layouts) or self._download()
        self.size, self.whole = size, whole
        self.resize, self.crop, self.flip, self.jitter = resize, crop, flip, jitter
        listed = class_list(self.published)
        images = ImageSet(
            self.shared_cache or self.published,
            base,
            lambda files: self.scan(base, files, set(listed)),
            size=size,
            resize=resize,
            options={} if self.shared_cache else {"whole": whole},
        )
        counts = dict(zip(images.names, images.counts, strict=True))
        validate(counts, images.homes, listed, whole, str(base), each=self.num_images_per_class, total=self.num_images)
        for note in images.notes:
            log.info("%s: %s", base, note)
        homes = np.array([listed[name][0] if name in listed else images.homes[name] for name in images.names])
        super().__init__(
            images.data(),
            {split: np.flatnonzero(homes == split).tolist() for split in SPLITS},
            seed=seed,
            name=self.published,
            input_shape=(3, size, size),
            way=way,
            shot=shot,
            query=query,
            test_ways=test_ways,
            unknown=unknown,
            episodes=episodes,
        )

    @abstractmethod
    def scan(self, base: Path, files: list[str], classes: set[str]) -> Collection:
        """Find the images in whichever layout ``base`` has, without decoding any.

        Args:
            base: Folder or file of the data.
            files: All paths below ``base``, relative and sorted; its own name if it is a file.
            classes: Names of the published classes.

        Raises:
            UserError: There are no images of this data set.
        """

    def protocol(self) -> dict[str, Any]:
        split = {} if self.split_by is None else {"split": self.split_by}
        resize = {} if self.square else {"resize": self.resize}
        return {
            **super().protocol(),
            **split,
            "size": self.size,
            **resize,
            "whole": self.whole,
            **self.augmentation("crop", "flip", "jitter"),
        }

    def _download(self) -> Path:
        if self.url is None:
            raise UserError(
                f"{self.title} is not found: put {self.layouts} into METARUN_DATA/{self.published}, or name their "
                "folder with task.root"
            )
        return download(self.url, f"md5:{self.md5}", self.url.rpartition("/")[2])

    def _nonempty(self, found: Collection, where: Path) -> Collection:
        """Return ``found``, or raise an error if it is empty."""
        require(bool(found.classes), f"{where}: holds no {self.title}; it must hold {self.layouts}")
        return found


def class_list(name: str) -> dict[str, tuple[Split, str]]:
    """Return split and superclass ("" if none) of each class in the published split ``splits/<name>.txt``."""
    listed: dict[str, tuple[Split, str]] = {}
    for line in (Path(__file__).parent / "splits" / f"{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            split, label, *group = line.split()
            listed[label] = (split, group[0] if group else "")  # type: ignore[assignment]
    return listed


def validate(
    counts: Mapping[str, int],
    homes: Mapping[str, Split],
    listed: Mapping[str, tuple[Split, str]],
    whole: bool,
    of: str,
    each: int | None = None,
    total: int | None = None,
) -> None:
    """Raise :class:`UserError` unless the classes match the published ones.

    Args:
        counts: Number of images of each class found.
        homes: Split of each class, if the layout has splits.
        listed: Split and superclass of each published class.
        whole: If false, classes and images may be missing, but unknown classes and other splits are still errors.
        of: Location of the data, for messages.
        each: Number of images of every class; ``None``: any.
        total: Number of images; ``None``: any.
    """
    unknown = [name for name in counts if name not in listed and name not in homes]
    require(
        not unknown and bool(counts),
        f"{of}: {len(unknown)} classes are in no split of this data set, such as '{unknown[0]}'"
        if unknown
        else f"{of}: holds no images of this data set",
    )
    for name, home in homes.items():
        own = listed.get(name, (home, ""))[0]
        require(own == home, f"{of}: class '{name}' lies in '{home}', but is one of '{own}' in the published split")
    for split in SPLITS:
        want = sum(home == split for home, _ in listed.values())
        have = sum(listed.get(name, (homes.get(name), ""))[0] == split for name in counts)
        missing = [n for n, (home, _) in listed.items() if home == split and n not in counts]
        known = any(name in listed for name in counts)
        named = f"; missing: {', '.join(missing[:NAMED])}{', ...' if len(missing) > NAMED else ''}" if known else ""
        require(
            have == want if whole else 0 < have <= want,
            f"{of}: has {have} classes of '{split}', not {want}{named if have < want else ''}{HINT if whole else ''}",
        )
    if not whole:
        return
    wrong = {name: have for name, have in counts.items() if each is not None and have != each}
    if wrong and each is not None:
        some = ", ".join(f"'{name}' has {have} of {each}" for name, have in list(wrong.items())[:NAMED])
        more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        lost = sum(each - have for have in wrong.values())
        raise UserError(f"{of}: {lost} images are missing, in {len(wrong)} classes: {some}{more}{HINT}")
    have = sum(counts.values())
    require(total in (None, have), f"{of}: has {have} images, not {total}{HINT}")
