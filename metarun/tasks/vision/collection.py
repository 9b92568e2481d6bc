"""A published image set as it lies on disk: in a folder, a tar or zip, or arrays; found, checked, decoded, cached."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.errors import UserError, require
from metarun.tasks.fewshot import ClassData
from metarun.tasks.files import Allocate, find, mapped
from metarun.tasks.vision.images import ENDINGS, NAMED, Source, decode, read_image
from metarun.types import SPLITS, Resize, Split

Classify = Callable[[str], "str | None"]
"""Path of an image file below its folder or archive -> its class, ``None`` for what is none of the set's images."""
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


@dataclass
class Collection:
    """Images by class: ``classes[c]`` are the names of its images, and ``read()`` gives all (name, image).

    ``homes[c]`` is the split in which the class lies, where the layout says.
    """

    classes: dict[str, list[str]]
    read: Callable[[], Iterable[tuple[str, Source]]]
    homes: dict[str, Split]


def joined(parts: Sequence[Collection]) -> Collection:
    """All of them; their classes are different ones."""
    classes: dict[str, list[str]] = {}
    homes: dict[str, Split] = {}
    for part in parts:
        for name in classes.keys() & part.classes.keys():
            raise UserError(f"class '{name}' is in both '{homes.get(name)}' and '{part.homes.get(name)}'")
        classes |= part.classes
        homes |= part.homes
    return Collection(classes, lambda: chain.from_iterable(part.read() for part in parts), homes)


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


def located(root: str | None, folders: Sequence[str], what: str) -> Path | None:
    """Where a set lies: ``root``, a folder or one file; else the first of ``folders`` in METARUN_DATA or the cache."""
    if root is None:
        return find(None, *folders)
    path = Path(root).expanduser()
    require(path.exists(), f"task.root={root}: no such file or folder; it must hold {what}")
    return next((path / f for f in folders if path.is_dir() and (path / f).exists()), path)


def listing(base: Path) -> dict[str, os.stat_result]:
    """Every file below the folder ``base`` (or ``base`` itself, a file) by its relative path, sorted; hidden ones not.

    The stats tell whether a file has changed, for the key of the cache.
    """
    if base.is_file():
        return {base.name: base.stat()}
    found = {}
    for folder, inner, files in os.walk(base):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__MACOSX"]
        for name in files:
            if not name.startswith("."):
                file = Path(folder, name)
                found[file.relative_to(base).as_posix()] = file.stat()
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
        for split, aliases in {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}.items():
            if any(alias in words for alias in aliases):
                return split  # type: ignore[return-value]
    return None


def _collected(names: Iterable[str], classify: Classify) -> tuple[dict[str, list[str]], dict[str, Split]]:
    classes: dict[str, list[str]] = {}
    homes: dict[str, Split] = {}
    for name in names:
        if not name.lower().endswith(ENDINGS) or any(part.startswith((".", "__MACOSX")) for part in Path(name).parts):
            continue
        label = classify(name)
        if label is not None:
            classes.setdefault(label, []).append(name)
            above = Path(name).parent  # one of CIFAR-100's classes is called train
            home = split_of((above.parent if above.name == label else above).as_posix())
            if home is not None and homes.setdefault(label, home) != home:
                raise UserError(f"class '{label}' is in both '{homes[label]}' and '{home}' ({name})")
    return dict(sorted(classes.items())), homes


def from_folder(base: Path, files: Iterable[str], classify: Classify) -> Collection:
    """The image files among ``files``, paths below ``base``."""
    classes, homes = _collected(files, classify)
    return Collection(classes, lambda: ((n, base / n) for names in classes.values() for n in names), homes)


def from_archive(path: Path, classify: Classify) -> Collection:
    """The image files in a tar (compressed or not) or zip, which is read from front to back."""
    classes, homes = _collected(sorted(name for name, _ in members(path, content=False)), classify)
    wanted = {name for names in classes.values() for name in names}
    return Collection(classes, lambda: ((n, file.read()) for n, file in members(path, wanted)), homes)


def members(path: Path, wanted: set[str] | None = None, content: bool = True) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, opened) of every file in an archive, of ``wanted`` where given; unopened without ``content``.

    Nothing is extracted, so a name may be whatever it likes.
    """
    nothing: Any = None
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.is_dir() and (wanted is None or info.filename in wanted):
                        yield info.filename, archive.open(info) if content else nothing
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile() and (wanted is None or member.name in wanted):
                        yield member.name, tar.extractfile(member) if content else nothing  # type: ignore[misc]
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable archive ({error}); fetch it again") from error


def from_arrays(name: str, classes: Mapping[str, NDArray[np.int64]], images: Any, home: Split | None) -> Collection:
    """Images in memory: ``classes[c]`` are their places in ``images``, which ``images[i]`` are sources."""
    named = {label: [f"{name}: image {i}" for i in places] for label, places in sorted(classes.items())}
    return Collection(
        named,
        lambda: ((f"{name}: image {i}", images[i]) for label in named for i in classes[label]),
        {} if home is None else dict.fromkeys(named, home),
    )


@dataclass(frozen=True)
class Stored:
    """A set decoded: ``x`` uint8 [N, 3, size, size] by class, ``names`` and ``offsets`` of the classes."""

    x: NDArray[np.uint8]
    names: list[str]
    offsets: NDArray[np.int64]
    homes: dict[str, Split]

    def data(self) -> ClassData:
        return ClassData(torch.from_numpy(self.x), self.offsets, self.names)

    def split(self, listed: Mapping[str, tuple[Split, str]]) -> dict[Split, NDArray[np.int64]]:
        """Class numbers of each split: by the published list, or where the layout has them under other names."""
        homes = [listed[name][0] if name in listed else self.homes[name] for name in self.names]
        return {split: np.flatnonzero(np.array(homes) == split) for split in SPLITS}


def stored(
    kind: str, key: dict[str, Any], collect: Callable[[], Collection], size: int, resize: Resize = "squash"
) -> Stored:
    """The set that ``collect()`` finds, decoded in parallel into the cache; mapped from there when ``key`` is known.

    Raises :class:`~metarun.errors.UserError` that counts and names images that cannot be read.
    """
    from PIL import __version__ as pillow

    def build(allocate: Allocate) -> dict[str, Any]:
        found = collect()
        rows = {name: row for row, name in enumerate(n for names in found.classes.values() for n in names)}
        x = allocate((len(rows), 3, size, size))
        seen = np.zeros(len(rows), dtype=bool)

        def numbered() -> Iterator[tuple[int, tuple[str, Source]]]:
            for name, source in found.read():
                seen[rows[name]] = True
                yield rows[name], (name, source)

        decode(numbered(), lambda named: pixels(*named, size, resize), x, f"decoding {kind}")
        lost = [name for name, row in rows.items() if not seen[row]]
        require(not lost, f"{len(lost)} images of {kind} are gone since they were listed, such as {lost[:1]}")
        offsets = np.cumsum([0, *map(len, found.classes.values())]).tolist()
        return {"names": list(found.classes), "offsets": offsets, "homes": found.homes}

    x, facts = mapped(kind, {"format": 1, "size": size, "resize": resize, "pillow": pillow, **key}, build)
    return Stored(x, facts["names"], np.array(facts["offsets"], dtype=np.int64), facts["homes"])


def published(
    kind: str,
    base: Path,
    gather: Callable[[list[str], dict[str, tuple[Split, str]]], Collection],
    *,
    size: int,
    whole: bool,
    resize: Resize = "squash",
    each: int | None = None,
    total: int | None = None,
) -> tuple[ClassData, dict[Split, NDArray[np.int64]]]:
    """The set ``kind`` at ``base``, decoded, and the classes of its splits.

    ``gather`` finds its images, given all paths below ``base`` and the published classes; they are :func:`checked`.
    """
    files, listed = listing(base), class_list(kind)
    key = {"root": str(base.resolve()), "whole": whole, "files": stamps(files)}

    def collect() -> Collection:
        return checked(gather(list(files), listed), listed, whole, str(base), each=each, total=total)

    found = stored(kind, key, collect, size, resize)
    return found.data(), found.split(listed)


def pixels(name: str, source: Source, size: int, resize: Resize) -> NDArray[np.uint8]:
    """One image as uint8 [3, size, size]. A pickle may hold a file's bytes as an array of one dimension."""
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and (source.ndim == 1 or source.shape[1:] == (1,)):
        source = source.tobytes()
    return read_image(source, size, "rgb", resize, name)


def stamps(files: Mapping[str, os.stat_result]) -> list[list[Any]]:
    """What changes when a file is added, removed or changed."""
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files.items()]


def checked(
    found: Collection,
    listed: Mapping[str, tuple[Split, str]],
    whole: bool,
    of: str,
    each: int | None = None,
    total: int | None = None,
) -> Collection:
    """``found`` without classes that are in no split, refused unless its classes are those that are published.

    ``each`` is how many images a class has in the published set, ``total`` how many there are; ``None``: any number.
    Where not ``whole``, classes and images may be missing, but no class more may be there, nor lie in another split.
    """
    strangers = [name for name in found.classes if name not in listed and name not in found.homes]
    require(
        not strangers and bool(found.classes),
        f"{of}: {len(strangers)} classes are in no split of this data set, such as '{strangers[0]}'"
        if strangers
        else f"{of}: holds no images of this data set",
    )
    for name, home in found.homes.items():
        own = listed.get(name, (home, ""))[0]
        require(own == home, f"{of}: class '{name}' lies in '{home}', but is one of '{own}' in the published split")
    for split in SPLITS:
        want = sum(home == split for home, _ in listed.values())
        have = sum(listed.get(name, (found.homes.get(name), ""))[0] == split for name in found.classes)
        missing = [n for n, (home, _) in listed.items() if home == split and n not in found.classes]
        known = any(name in listed for name in found.classes)
        named = f"; missing: {', '.join(missing[:NAMED])}{', ...' if len(missing) > NAMED else ''}" if known else ""
        require(
            have == want if whole else 0 < have <= want,
            f"{of}: has {have} classes of '{split}', not {want}{named if have < want else ''}{HINT if whole else ''}",
        )
    if not whole:
        return found
    sizes = {name: len(images) for name, images in found.classes.items()}
    wrong = {name: have for name, have in sizes.items() if each is not None and have != each}
    if wrong and each is not None:
        some = ", ".join(f"'{name}' has {have} of {each}" for name, have in list(wrong.items())[:NAMED])
        more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        lost = sum(each - have for have in wrong.values())
        raise UserError(f"{of}: {lost} images are missing, in {len(wrong)} classes: {some}{more}{HINT}")
    have = sum(sizes.values())
    require(total in (None, have), f"{of}: has {have} images, not {total}{HINT}")
    return found


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
