"""Sources of images: a folder, a tar or zip, or arrays, sorted by class and split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun.errors import UserError, nearest_path, require
from metarun.tasks.archives import members
from metarun.tasks.files import find
from metarun.tasks.vision.images import NAMED, Source, is_clutter, is_image
from metarun.types import Split

Classify = Callable[[str], "str | None"]
"""Function that maps an image's relative path to its class, or ``None`` if it is not part of the set."""
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


@dataclass
class Collection:
    """Images sorted by class.

    Attributes:
        classes: Names of the images of each class.
        read: Function that yields all (name, image).
        homes: Split of each class, if the layout has splits.
        notes: Remarks on files that were left out.
    """

    classes: dict[str, list[str]]
    read: Callable[[], Iterable[tuple[str, Source]]]
    homes: dict[str, Split]
    notes: list[str] = field(default_factory=list)


def merge(parts: Sequence[Collection]) -> Collection:
    """Combine collections with disjoint classes; raises :class:`UserError` if they share one."""
    classes: dict[str, list[str]] = {}
    homes: dict[str, Split] = {}
    for part in parts:
        for name in classes.keys() & part.classes.keys():
            raise UserError(f"class '{name}' is in both '{homes.get(name)}' and '{part.homes.get(name)}'")
        classes |= part.classes
        homes |= part.homes
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    return Collection(classes, lambda: chain.from_iterable(part.read() for part in parts), homes, notes)


def wordnet_id(name: str) -> str | None:
    """Return the class of ``n0153282900000005.jpg``, or of any image in a folder ``n01532829``."""
    found = re.match(r"(n\d{8})\d{8}\.\w+$", Path(name).name)
    folder = re.fullmatch(r"n\d{8}", Path(name).parent.name)
    return found[1] if found else folder[0] if folder else None


def in_class_folders(classes: set[str]) -> Classify:
    """Return a classifier of images by the name of their folder, which must be one of ``classes``."""

    def classify(name: str) -> str | None:
        label = Path(name).parent.name
        return label if label in classes else None

    return classify


def locate(root: str | None, folders: Sequence[str], what: str) -> Path | None:
    """Return the location of a set: ``root``, or the first of ``folders`` in METARUN_DATA or the cache.

    Args:
        root: A folder or one file; ``None`` to search.
        folders: Folder names to look for, in ``root`` too.
        what: Description of the expected content, for messages.

    Raises:
        UserError: ``root`` does not exist.
    """
    if root is None:
        return find(None, *folders)
    path = Path(root).expanduser()
    require(path.exists(), f"task.root={root}: no such file or folder{nearest_path(path)}   it must hold {what}")
    return next((path / f for f in folders if path.is_dir() and (path / f).exists()), path)


def listing(base: Path) -> dict[str, os.stat_result]:
    """Return every file below the folder ``base`` by its sorted relative path, or ``base`` itself if it is a file.

    Links are followed, each folder once. Clutter (:func:`~metarun.tasks.vision.images.is_clutter`) is left out. An
    empty folder is listed with a slash at the end. The stats show whether a file has changed.
    """
    if base.is_file():
        return {base.name: base.stat()}
    found, seen = {}, set()
    for folder, inner, files in os.walk(base, followlinks=True):
        place = Path(folder)
        if (real := os.path.realpath(folder)) in seen and place.is_symlink():
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not is_clutter(name))
        if not inner and not files and place != base:
            found[f"{place.relative_to(base).as_posix()}/"] = place.stat()
        for name in files:
            if not is_clutter(name):
                file = place / name
                try:
                    found[file.relative_to(base).as_posix()] = file.stat()
                except OSError as error:
                    linked = (
                        f"a link to {os.readlink(file)}, which is not there" if file.is_symlink() else error.strerror
                    )
                    raise UserError(f"{file}: {linked}") from None
    return dict(sorted(found.items()))


def archives(base: Path, files: Iterable[str]) -> list[Path]:
    """Return the archives among ``files`` below ``base``."""
    return [_at(base, name) for name in files if name.lower().endswith(ARCHIVES)]


def _at(base: Path, name: str) -> Path:
    return base if base.is_file() else base / name


def split_of(name: str) -> Split | None:
    """Return the split named in a path: ``train-00000-of-00006.parquet``, ``validation/0000.parquet``,
    ``val/n01/1.jpg``.
    """
    for part in reversed(Path(name).parts):
        words = part.replace("-", " ").replace("_", " ").replace(".", " ").lower().split()
        for split, aliases in SPLIT_NAMES.items():
            if any(alias in words for alias in aliases):
                return split
    return None


SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of each split in folders and files."""


def _by_class(names: Iterable[str], classify: Classify) -> Collection:
    """Sort the images among ``names`` by class. If classes lie in several splits, these are splits of images and are
    ignored.
    """
    classes: dict[str, list[str]] = {}
    homes: dict[str, set[Split | None]] = {}
    others: Counter[str] = Counter()
    for name in names:
        if is_clutter(name) or not is_image(name):
            continue
        label = classify(name)
        if label is None:
            others["of no class of this data set"] += 1
            continue
        classes.setdefault(label, []).append(name)
        above = Path(name).parent  # one of CIFAR-100's classes is called train
        home = split_of((above.parent if above.name == label else above).as_posix())
        homes.setdefault(label, set()).add(home)
    notes = [f"left out {count} images {why}" for why, count in others.items()]
    several = sorted(label for label, splits in homes.items() if len(splits - {None}) > 1)
    present = {split for splits in homes.values() for split in splits}
    if several:
        parts = " and ".join(sorted({f"{split}/" for label in several for split in homes[label] if split}))
        notes.append(
            f"{len(several)} classes such as '{several[0]}' lie in {parts}: this split of images is ignored, "
            "and the images of all parts are used"
        )
    known = {} if several or len(present) == 1 else {c: split for c, (split, *_) in homes.items() if split}
    return Collection(dict(sorted(classes.items())), lambda: (), dict(sorted(known.items())), notes)


def from_folder(base: Path, files: Iterable[str], classify: Classify) -> Collection:
    """Collect the image files among ``files``, paths below ``base``."""
    found = _by_class(files, classify)
    return replace(found, read=lambda: ((name, base / name) for names in found.classes.values() for name in names))


def from_archive(path: Path, classify: Classify | None = None, found: Collection | None = None) -> Collection:
    """Collect the image files in a zip or tar, which is read from front to back.

    Args:
        path: The archive.
        classify: Classifier of its members.
        found: The collection, if its members are already classified.
    """
    if found is None:
        assert classify is not None
        found = _by_class(sorted(name for name, _ in members(path, content=False)), classify)
    wanted = {name for names in found.classes.values() for name in names}
    return replace(found, read=lambda: ((n, file.read()) for n, file in members(path, wanted)))


def from_arrays(name: str, classes: Mapping[str, NDArray[np.int64]], images: Any, home: Split | None) -> Collection:
    """Collect images in memory.

    Args:
        name: Name of the file, for messages.
        classes: Positions in ``images`` of each class.
        images: Sequence of sources.
        home: Split of all classes, if known.
    """
    named = {label: [f"{name}: image {i}" for i in places] for label, places in sorted(classes.items())}
    return Collection(
        named,
        lambda: ((f"{name}: image {i}", images[i]) for label in named for i in classes[label]),
        {} if home is None else dict.fromkeys(named, home),
    )


def refuse_missing(found: Collection, listed: Sequence[str], by: str) -> None:
    """Raise :class:`UserError` unless every image in ``listed`` is there; folders are ignored in the comparison."""
    available = {Path(name).name for names in found.classes.values() for name in names}
    missing = [name for name in listed if Path(name).name not in available]
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    require(
        not missing,
        f"{len(missing)} of the {len(listed)} images listed in {by} are missing: {', '.join(missing[:NAMED])}{more}",
    )
