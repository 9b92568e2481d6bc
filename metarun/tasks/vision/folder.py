"""Few-shot classification of the user's own images: one folder for each class."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.errors import UserError, nearest_path, require
from metarun.tasks.archives import members
from metarun.tasks.splits import split_classes
from metarun.tasks.vision.base import ImageFewShot
from metarun.tasks.vision.collection import ImageSet
from metarun.tasks.vision.images import ENDINGS, NAMED, is_clutter, is_image
from metarun.tasks.vision.sources import ARCHIVES, SPLIT_NAMES, Collection, from_archive
from metarun.types import SPLITS, Count, DataPath, Episodes, Fraction, NonNegative, Positive, Split

log = logging.getLogger("metarun")


class Folder(ImageFewShot):
    """Classification of the images in a folder or archive of the user's.

    The layout is ``root/<class>/`` or, with the user's own split, ``root/{train,val,test}/<class>/``. ``valid``,
    ``validation`` and ``dev`` are other names for ``val``; without any of them, the classes of ``train`` are divided. A
    single folder around the classes, or around the images of a class, is skipped. If ``train`` and ``test`` have the
    same classes, they are taken for a split of images and merged. The log counts and names the files that were not
    read.

    Images of any size and mode are read (:func:`~metarun.tasks.vision.images.open_image`), cropped to their centre
    square and resized. They are decoded into the cache once, and again when the content of a file changes.

    Args:
        seed: Seed of the episodes.
        root: A folder, or an archive (.zip, .tar, .tar.gz).
        way: Classes of an episode.
        shot: Support images of a class.
        query: Query images of a class.
        test_ways: Further ways to test.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
            (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.
        size: Height and width in pixels.
        colour: ``rgb`` or ``grey``.
        val: Fraction of the classes for meta-validation, unless the user has a split; at least 2 of 6 classes.
        test: The same for meta-test.
        split_seed: Seed of the random split.
        augment: Strength of the random affine maps of meta-training images; see
            :class:`~metarun.tasks.vision.base.ImageFewShot`, also for ``crop``, ``flip`` and ``jitter``.
        crop: Padding of random crops, in pixels.
        flip: Random mirroring.
        jitter: Strength of random brightness, contrast and saturation.

    Raises:
        UserError: The folder is missing or empty, an image cannot be read, or there are too few classes or images.
    """

    remedy_for_few_classes = "; lower it, change task.val or task.test, or add classes"

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
        colour: Literal["rgb", "grey"],
        val: Fraction,
        test: Fraction,
        split_seed: int,
        augment: NonNegative,
        crop: Count,
        flip: bool,
        jitter: NonNegative,
        unknown: Count,
        episodes: Episodes,
    ) -> None:
        require(
            root is not None, "task.root is not set: name the folder that holds one folder of images for each class"
        )
        base = Path(str(root)).expanduser()
        require(base.exists(), f"task.root={root}: no such folder{nearest_path(base)}")
        require(
            base.is_dir() or base.name.lower().endswith(ARCHIVES),
            f"task.root={root}: not a folder, nor an archive ({', '.join(ARCHIVES)})",
        )
        images = ImageSet("folder", base, lambda files: collect(base, files), size=size, resize="crop", colour=colour)
        for note in images.notes:
            log.info("%s: %s", base, note)
        self.size, self.colour, self.augment = size, colour, augment
        self.crop, self.flip, self.jitter = crop, flip, jitter
        self.partition: dict[str, Any]
        homes = np.array([images.homes.get(name, "") for name in images.names])
        classes: dict[Split, NDArray[np.int64]] = {split: np.flatnonzero(homes == split) for split in SPLITS}
        if all(len(ids) for ids in classes.values()):
            self.partition = {"split": "own"}
        elif len(classes["train"]):
            require(len(classes["test"]) > 0, f"{base}: beside train/ there must be test/, with the classes to test on")
            drawn = split_classes(range(len(classes["train"])), val=val, test=0, seed=split_seed, least=2)
            self.partition = {"split": "own, val drawn from train", "split_seed": split_seed}
            train = classes["train"]
            classes |= {"train": train[drawn["train"]], "val": train[drawn["val"]]}
            log.info("%s: no val/ beside train/: %d of its %d classes are for validation (task.val=%g)",
                     base, len(classes["val"]), len(train), val)  # fmt: skip
        else:
            self.partition = {"split": "random", "split_seed": split_seed}
            classes = split_classes(range(len(images.names)), val=val, test=test, seed=split_seed, least=2)
        for split in SPLITS:
            require(
                len(classes[split]) >= 2,
                f"task.root={root}: {len(images.names)} classes leave {len(classes[split])} for '{split}', and an "
                "episode needs 2; add classes (6 are enough), or change task.val or task.test",
            )
        shape = {
            "way": way,
            "shot": shot,
            "query": query,
            "test_ways": test_ways,
            "unknown": unknown,
            "episodes": episodes,
        }
        input_shape = (1 if colour == "grey" else 3, size, size)
        super().__init__(
            images.data(),
            classes,  # type: ignore[arg-type]
            seed=seed,
            name=base.name,
            input_shape=input_shape,
            **shape,  # type: ignore[arg-type]
        )

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            **self.partition,
            "size": self.size,
            "colour": self.colour,
            **self.augmentation("augment", "crop", "flip", "jitter"),
        }


def collect(base: Path, files: Sequence[str]) -> Collection:
    """Find the images of a folder, given all paths ``files`` below it, or of an archive."""
    if base.is_file():
        names = sorted(name for name, _ in members(base, content=False) if not is_clutter(name))
        return from_archive(base, found=by_folder(names, str(base)))
    found = by_folder(files, str(base))
    found.read = lambda: ((name, base / name) for names in found.classes.values() for name in names)
    return found


def by_folder(paths: Iterable[str], of: str, splits: bool = True) -> Collection:
    """Sort images into classes and splits by the folders of their paths. The images themselves are not read.

    Args:
        paths: Relative paths with slashes; a path that ends in a slash is an empty folder.
        of: Name of the folder or archive, for messages.
        splits: If true, folders named train, val and test are splits.

    Raises:
        UserError: There are no folders of images, or a class is in two splits.
    """
    left_out: Counter[str] = Counter()
    tree: dict[tuple[str, ...], str] = {}
    for path in paths:
        parts = PurePosixPath(path).parts
        if path.endswith("/"):
            empty = (*parts, "")
            tree[empty] = path
        elif is_image(path):
            tree[parts] = path
        else:
            left_out[_kind(path)] += 1
    tree = _unwrapped(tree)
    homes_of = _split_folders(tree) if splits else {}
    found: dict[str, dict[Split | None, list[str]]] = {}
    for (home, name), files in _classes(tree, homes_of, left_out).items():
        found.setdefault(name, {})[home] = _images_of(name, files, left_out, of)
    require(
        bool(found),
        f"{of}: holds no folders of images; it must hold one folder a class, of {', '.join(e[1:] for e in ENDINGS)}"
        + _skipped(left_out),
    )
    notes = []
    shared = sorted(name for name, parts in found.items() if len(parts) > 1)
    if shared:
        both = [split for split in SPLITS if any(split in found[name] for name in shared)]
        smaller = min(sum(home in each for each in found.values()) for home in both)
        if len(shared) < smaller:
            raise UserError(f"{of}: class '{shared[0]}' is in both {' and '.join(f'{p}/' for p in both)}; remove one")
        notes.append(
            f"{' and '.join(f'{part}/' for part in both)} hold the same {len(shared)} classes: that split of images "
            "is ignored, all are used, and classes are drawn for each split (task.split_seed)"
        )
    classes = {name: sorted(file for files in parts.values() for file in files) for name, parts in found.items()}
    homes = {} if shared else {name: home for name, parts in found.items() for home in parts if home is not None}
    count = sum(map(len, classes.values()))
    notes.insert(0, f"read {count} images of {len(classes)} classes{_skipped(left_out)}")
    if set(homes.values()) == {"train"}:
        homes = {}
    return Collection(dict(sorted(classes.items())), lambda: (), homes, notes)


Tree = dict[tuple[str, ...], str]
"""Path of each image, by the parts of the path below the folders that are skipped. An empty folder ends in an empty
part.
"""


def _unwrapped(tree: Tree) -> Tree:
    """Skip single folders that contain all others, as archives often have one."""
    tops = {parts[0] for parts in tree}
    inside = {parts[1:]: path for parts, path in tree.items()}
    if len(tops) == 1 and inside and all(len(parts) > 1 for parts in inside):
        return _unwrapped(inside)
    return tree


def _split_folders(tree: Tree) -> dict[str, Split]:
    """Return the top folders that are splits, if one of them is train: folders of folders of images."""
    tops = {parts[0] for parts in tree if len(parts) > 2}
    found = {top: split for split, names in SPLIT_NAMES.items() for top in tops if top.lower() in names}
    return found if "train" in found.values() else {}


def _classes(
    tree: Tree, homes: dict[str, Split], left_out: Counter[str]
) -> dict[tuple[Split | None, str], dict[tuple[str, ...], str]]:
    """Group images by (split, class); the inner keys are the remaining parts of their paths."""
    found: dict[tuple[Split | None, str], dict[tuple[str, ...], str]] = {}
    for parts, path in tree.items():
        home = homes.get(parts[0])
        inner = parts[1:] if home else parts
        if homes and not home:
            left_out[f"beside train/ ({parts[0]}/)"] += parts[-1] != ""
        elif len(inner) < 2:
            left_out["outside of the classes' folders"] += inner != ("",)
        else:
            found.setdefault((home, inner[0]), {})[inner[1:]] = path
    # Tiny-ImageNet's val/images and test/images are images without a class.
    for home in set(homes.values()) - {"train"}:
        if {name for split, name in found if split == home} == {"images"}:
            left_out[f"in {home}/images, which is no class"] += len(found.pop((home, "images")))
    return found


def _images_of(name: str, files: dict[tuple[str, ...], str], left_out: Counter[str], of: str) -> list[str]:
    """Return the images of a class: those in its folder, or in the single folder inside it."""
    direct = [path for rest, path in files.items() if len(rest) == 1 and rest != ("",)]
    inner = {rest[0] for rest, path in files.items() if len(rest) > 1 and rest[-1] != ""}
    if direct:
        left_out[f"in folders inside that of a class ('{name}/{min(inner, default='')}')"] += sum(
            len(rest) > 1 and rest[-1] != "" for rest in files
        )
        return direct
    if len(inner) > 1:
        raise UserError(
            f"{of}: '{name}' holds folders of images ({', '.join(sorted(inner)[:NAMED])}) where a class's images are "
            f"expected; name the folder that holds the classes' folders, such as {of}/{name}"
        )
    if inner:
        return _images_of(name, {rest[1:]: path for rest, path in files.items() if rest[0] in inner}, left_out, of)
    raise UserError(f"{of}/{name}: no images in this class's folder ({', '.join(e[1:] for e in ENDINGS)})")


def _kind(path: str) -> str:
    """Return the category under which a skipped file is counted."""
    ending = PurePosixPath(path).suffix.lower()
    return f"{ending or 'without an ending'}{' (no decoder)' if ending in UNREAD else ''}"


UNREAD = (
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".psd"),
    *(".raw", ".dng", ".cr2", ".nef", ".arw", ".tga", ".exr", ".webp"),
)
"""Endings of image formats without a decoder, unless they are in :data:`~metarun.tasks.vision.images.ENDINGS`."""


def _skipped(left_out: Counter[str]) -> str:
    """Format counts for a message: ``"; skipped 3 files: 2 .avif (no decoder), 1 .txt"``."""
    counts = {kind: count for kind, count in sorted(left_out.items()) if count}
    total = sum(counts.values())
    named = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"; skipped {total} file{'s' if total > 1 else ''}: {named}" if total else ""
