"""A published image set as it lies on disk: in a folder, a tar or zip, or arrays; found, checked, decoded, cached."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import UserError, require
from metarun.tasks.archives import members
from metarun.tasks.fewshot import ClassData
from metarun.tasks.files import Allocate, find, mapped, recalled, remember
from metarun.tasks.vision.images import NAMED, Source, decode, is_clutter, is_image, read_image
from metarun.types import SPLITS, Resize, Split

log = logging.getLogger("metarun")

Classify = Callable[[str], "str | None"]
"""Path of an image file below its folder or archive -> its class, ``None`` for what is none of the set's images."""
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


@dataclass
class Collection:
    """Images by class: ``classes[c]`` are the names of its images, and ``read()`` gives all (name, image).

    ``homes[c]`` is the split in which the class lies, where the layout says. ``notes`` say what was left out.
    """

    classes: dict[str, list[str]]
    read: Callable[[], Iterable[tuple[str, Source]]]
    homes: dict[str, Split]
    notes: list[str] = field(default_factory=list)


def merge(parts: Sequence[Collection]) -> Collection:
    """All of them; their classes are different ones."""
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
    """The class of ``n0153282900000005.jpg``, or of any image in a folder ``n01532829``."""
    found = re.match(r"(n\d{8})\d{8}\.\w+$", Path(name).name)
    folder = re.fullmatch(r"n\d{8}", Path(name).parent.name)
    return found[1] if found else folder[0] if folder else None


def class_list(name: str) -> dict[str, tuple[Split, str]]:
    """The published split ``splits/<name>.txt``: class -> its split, and its superclass ("" where there are none)."""
    listed: dict[str, tuple[Split, str]] = {}
    for line in (Path(__file__).parent / "splits" / f"{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            split, label, *group = line.split()
            listed[label] = (split, group[0] if group else "")  # type: ignore[assignment]
    return listed


def locate(root: str | None, folders: Sequence[str], what: str) -> Path | None:
    """Where a set lies: ``root``, a folder or one file; else the first of ``folders`` in METARUN_DATA or the cache."""
    if root is None:
        return find(None, *folders)
    path = Path(root).expanduser()
    require(path.exists(), f"task.root={root}: no such file or folder; it must hold {what}")
    return next((path / f for f in folders if path.is_dir() and (path / f).exists()), path)


def listing(base: Path) -> dict[str, os.stat_result]:
    """Every file below the folder ``base`` (or ``base`` itself, a file) by its relative path, sorted.

    Links are followed, each folder once. Clutter (:func:`~metarun.tasks.vision.images.is_clutter`) is left out. An
    empty folder is listed too, with a slash at the end. The stats tell whether a file has changed.
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
    """Those of ``files`` below ``base`` that are archives."""
    return [_at(base, name) for name in files if name.lower().endswith(ARCHIVES)]


def _at(base: Path, name: str) -> Path:
    return base if base.is_file() else base / name


def split_of(name: str) -> Split | None:
    """The split that a path names: ``train-00000-of-00006.parquet``, ``validation/0000.parquet``, ``val/n01/1.jpg``."""
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
"""What people call the folders and files of each split."""


def _by_class(names: Iterable[str], classify: Classify) -> Collection:
    """The images among ``names``; where a class lies in several splits, these split images, and are ignored."""
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
    there = {split for splits in homes.values() for split in splits}
    if several:
        parts = " and ".join(sorted({f"{split}/" for label in several for split in homes[label] if split}))
        notes.append(
            f"{len(several)} classes such as '{several[0]}' lie in {parts} alike: that split of images is ignored, "
            "and the images of all parts are used"
        )
    told = {} if several or len(there) == 1 else {c: split for c, (split, *_) in homes.items() if split}
    return Collection(dict(sorted(classes.items())), lambda: (), dict(sorted(told.items())), notes)


def from_folder(base: Path, files: Iterable[str], classify: Classify) -> Collection:
    """The image files among ``files``, paths below ``base``."""
    found = _by_class(files, classify)
    return replace(found, read=lambda: ((name, base / name) for names in found.classes.values() for name in names))


def from_archive(path: Path, classify: Classify | None = None, found: Collection | None = None) -> Collection:
    """The image files in a tar (compressed or not) or zip, which is read from front to back.

    ``found`` says which, and of which classes, in place of ``classify``.
    """
    if found is None:
        assert classify is not None
        found = _by_class(sorted(name for name, _ in members(path, content=False)), classify)
    wanted = {name for names in found.classes.values() for name in names}
    return replace(found, read=lambda: ((n, file.read()) for n, file in members(path, wanted)))


def from_arrays(name: str, classes: Mapping[str, NDArray[np.int64]], images: Any, home: Split | None) -> Collection:
    """Images in memory: ``classes[c]`` are their places in ``images``, which ``images[i]`` are sources."""
    named = {label: [f"{name}: image {i}" for i in places] for label, places in sorted(classes.items())}
    return Collection(
        named,
        lambda: ((f"{name}: image {i}", images[i]) for label in named for i in classes[label]),
        {} if home is None else dict.fromkeys(named, home),
    )


class ImageSet:
    """The images that ``gather`` finds at ``base``, listed; hashed and decoded when that is first asked for.

    ``gather`` is given all paths below ``base``. What it found and the hash of every class's images are remembered
    until a file is added, removed or changed. The decoded images are kept by these hashes: a folder that was moved,
    touched or packed into an archive is decoded once, and two families of the same images share them.

    Attributes: ``names`` [C], ``counts`` [C] and ``homes`` as in :class:`Collection`.
    """

    def __init__(
        self,
        kind: str,
        base: Path,
        gather: Callable[[list[str]], Collection],
        *,
        size: int,
        resize: Resize,
        colour: str = "rgb",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.kind, self.base, self.size, self.resize, self.colour = kind, base, size, resize, colour
        files = listing(base)
        self._gather = lambda: gather(list(files))
        stamps = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files.items()]
        root = str(base.resolve())
        self._key = {"format": 1, "kind": kind, "root": root, "files": stamps, **(options or {})}
        facts = recalled("index", self._key)
        self._digests: list[str] | None = None
        if facts is None:
            found = self._found
            facts = {"counts": {name: len(images) for name, images in found.classes.items()}}
            facts |= {"homes": found.homes, "notes": found.notes}
        else:
            self._digests = facts["digests"]
        self.names, self.counts = list(facts["counts"]), list(facts["counts"].values())
        self.homes: dict[str, Split] = facts["homes"]
        self.notes: list[str] = facts["notes"]

    @cached_property
    def _found(self) -> Collection:
        return self._gather()

    @property
    def offsets(self) -> NDArray[np.int64]:
        return np.cumsum([0, *self.counts])

    @property
    def digests(self) -> list[str]:
        """[C] a hash of the content of each class's image files, in their order; their names play no part."""
        if self._digests is None:
            contents = np.zeros(sum(self.counts), dtype=np.uint64)
            self._read(lambda named: content_id(*named), contents, "reading")
            parts = zip(self.offsets, self.offsets[1:], strict=False)
            self._digests = [hashlib.sha256(contents[a:b].tobytes()).hexdigest()[:16] for a, b in parts]
            facts = {"counts": dict(zip(self.names, self.counts, strict=True)), "digests": self._digests}
            remember("index", self._key, {**facts, "homes": self.homes, "notes": self.notes})
        return self._digests

    def load(self) -> Tensor:
        """All images, uint8 [N, 1 or 3, size, size], decoded into the cache or mapped from there.

        Raises :class:`~metarun.errors.UserError` that counts and names images that cannot be read.
        """
        from PIL import __version__ as pillow

        shape = (sum(self.counts), 1 if self.colour == "grey" else 3, self.size, self.size)

        def build(allocate: Allocate) -> None:
            one = partial(pixels, size=self.size, resize=self.resize, colour=self.colour)
            self._read(lambda named: one(*named), allocate(shape), "decoding")

        key = {"format": 3, "size": self.size, "resize": self.resize, "colour": self.colour, "pillow": pillow}
        what = f"{shape[0]} images of {len(self.names)} classes, {self.size} px {self.colour}, from {self.base}"
        return torch.from_numpy(mapped(self.kind, {**key, "images": self.counts, "content": self.digests}, build, what))

    def data(self) -> ClassData:
        return ClassData(self.load, self.offsets, self.names, lambda: self.digests, [str(self.base.resolve())])

    def _read(self, one: Callable[[tuple[str, Source]], Any], into: NDArray[Any], doing: str) -> None:
        """``into[row] = one((name, source))`` for every image."""
        rows = {name: row for row, name in enumerate(n for names in self._found.classes.values() for n in names)}
        seen = np.zeros(len(rows), dtype=bool)

        def numbered() -> Iterator[tuple[int, tuple[str, Source]]]:
            for name, source in self._found.read():
                seen[rows[name]] = True
                yield rows[name], (name if isinstance(source, bytes | np.ndarray) else str(source), source)

        decode(numbered(), one, into, f"{doing} {self.kind if self.kind != 'folder' else self.base.name}")
        lost = [name for name, row in rows.items() if not seen[row]]
        require(not lost, f"{len(lost)} images of {self.kind} are gone since they were listed, such as {lost[:1]}")


def content_id(name: str, source: Source) -> int:
    """CRC-32 and length of a file's bytes, or of an array's pixels."""
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    content = np.ascontiguousarray(content).tobytes() if isinstance(content, np.ndarray) else content
    assert isinstance(content, bytes)
    return zlib.crc32(content) << 32 | (len(content) & 0xFFFFFFFF)


def load_published(
    kind: str,
    base: Path,
    gather: Callable[[list[str], dict[str, tuple[Split, str]]], Collection],
    *,
    size: int,
    whole: bool,
    resize: Resize = "squash",
    each: int | None = None,
    total: int | None = None,
    store: str | None = None,
) -> tuple[ClassData, dict[Split, NDArray[np.int64]]]:
    """The set ``kind`` at ``base``, and the class numbers of its splits: the published ones, else the layout's.

    ``gather`` finds its images, given all paths below ``base`` and the published classes; they are validated
    before any is decoded. Sets of the same images name one ``store`` in the cache.
    """
    listed = class_list(kind)
    options = {"whole": whole} if store is None else {}
    images = ImageSet(
        store or kind, base, lambda files: gather(files, listed), size=size, resize=resize, options=options
    )
    counts = dict(zip(images.names, images.counts, strict=True))
    validate(counts, images.homes, listed, whole, str(base), each=each, total=total)
    for note in images.notes:
        log.info("%s: %s", base, note)
    homes = np.array([listed[name][0] if name in listed else images.homes[name] for name in images.names])
    return images.data(), {split: np.flatnonzero(homes == split) for split in SPLITS}


def pixels(name: str, source: Source, size: int, resize: Resize, colour: str = "rgb") -> NDArray[np.uint8]:
    """One image as uint8 [1 or 3, size, size]. A pickle may hold a file's bytes as an array of one dimension."""
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and (source.ndim == 1 or source.shape[1:] == (1,)):
        source = source.tobytes()
    return read_image(source, size, colour, resize, name)


def validate(
    counts: Mapping[str, int],
    homes: Mapping[str, Split],
    listed: Mapping[str, tuple[Split, str]],
    whole: bool,
    of: str,
    each: int | None = None,
    total: int | None = None,
) -> None:
    """Refuse images, so many a class, whose classes are not those that are published.

    ``each`` is how many images a class has in the published set, ``total`` how many there are; ``None``: any number.
    Where not ``whole``, classes and images may be missing, but no class more may be there, nor lie in another split.
    """
    strangers = [name for name in counts if name not in listed and name not in homes]
    require(
        not strangers and bool(counts),
        f"{of}: {len(strangers)} classes are in no split of this data set, such as '{strangers[0]}'"
        if strangers
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


def refuse_missing(found: Collection, listed: Sequence[str], by: str) -> None:
    """Every image that the set's own list names must be there; its name is compared without folders."""
    there = {Path(name).name for names in found.classes.values() for name in names}
    missing = [name for name in listed if Path(name).name not in there]
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    require(
        not missing,
        f"{len(missing)} of the {len(listed)} images that {by} names are missing: {', '.join(missing[:NAMED])}{more}",
    )


HINT = "; fetch it again, or take what is there with task.whole=false"
