"""Sets of images: listed, hashed, and decoded once into the cache."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import UserError, require
from metarun.tasks.class_data import ClassData
from metarun.tasks.files import Allocate, mapped, recalled, remember
from metarun.tasks.vision.images import Source, decode, read_image
from metarun.tasks.vision.sources import Collection, listing
from metarun.types import Resize, Split


class ImageSet:
    """The images found at ``base``, hashed and decoded on first use.

    The listing and the hashes are remembered until a file is added, removed or changed. Decoded images are cached by
    content: a folder that was moved, touched or packed into an archive is not decoded again, and families of the same
    images share them.

    Args:
        kind: Name of the cache folder.
        base: Folder or file of the data.
        gather: Function that sorts all paths below ``base`` into classes.
        size: Height and width in pixels.
        resize: Resizing method.
        colour: ``rgb`` or ``grey``.
        options: Further values that the listing depends on.

    Attributes:
        names: Names of the classes, [C].
        counts: Number of images of each class, [C].
        homes: Split of each class, if the layout has splits.
        notes: Remarks on files that were left out.
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
        """Hash of the content of each class's image files in order, [C]. File names are not part of it."""
        if self._digests is None:
            contents = np.zeros(sum(self.counts), dtype=np.uint64)
            self._read(lambda named: content_id(*named), contents, "reading")
            parts = zip(self.offsets, self.offsets[1:], strict=False)
            self._digests = [hashlib.sha256(contents[a:b].tobytes()).hexdigest()[:16] for a, b in parts]
            facts = {"counts": dict(zip(self.names, self.counts, strict=True)), "digests": self._digests}
            remember("index", self._key, {**facts, "homes": self.homes, "notes": self.notes})
        return self._digests

    def load(self) -> Tensor:
        """Return all images, uint8 [N, 1 or 3, size, size], from the cache or decoded into it.

        Raises:
            UserError: Some images cannot be read; the message counts and names them.
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
        """Compute ``into[row] = one((name, source))`` for every image."""
        rows = {name: row for row, name in enumerate(n for names in self._found.classes.values() for n in names)}
        seen = np.zeros(len(rows), dtype=bool)

        def numbered() -> Iterator[tuple[int, tuple[str, Source]]]:
            for name, source in self._found.read():
                seen[rows[name]] = True
                yield rows[name], (name if isinstance(source, bytes | np.ndarray) else str(source), source)

        decode(numbered(), one, into, f"{doing} {self.kind if self.kind != 'folder' else self.base.name}")
        lost = [name for name, row in rows.items() if not seen[row]]
        require(not lost, f"{len(lost)} images of {self.kind} have vanished since they were listed, such as {lost[:1]}")


def content_id(name: str, source: Source) -> int:
    """Return CRC-32 and length of a file's bytes or an array's pixels as one integer."""
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    content = np.ascontiguousarray(content).tobytes() if isinstance(content, np.ndarray) else content
    assert isinstance(content, bytes)
    return zlib.crc32(content) << 32 | (len(content) & 0xFFFFFFFF)


def pixels(name: str, source: Source, size: int, resize: Resize, colour: str = "rgb") -> NDArray[np.uint8]:
    """Decode an image as uint8 [1 or 3, size, size]. Pickles may hold a file's bytes as a one-dimensional array."""
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and (source.ndim == 1 or source.shape[1:] == (1,)):
        source = source.tobytes()
    return read_image(source, size, colour, resize, name)
