"""Reading of image files, one at a time and in parallel."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from metarun.errors import UserError
from metarun.progress import Progress
from metarun.tasks.files import cpus
from metarun.types import Ink, Resize, Resizing

T = TypeVar("T")


@dataclass(frozen=True)
class StoredImage:
    """An image inside a file of many.

    Attributes:
        name: Its file and row.
        content: Its content in an image format.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


Source = Path | bytes | NDArray[Any] | Image.Image
"""An image: its file, the content of a file, its pixels [H, W] or [H, W, channels], or a Pillow image."""
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
"""Pillow's names of the supported formats and the endings of their files.

Formats are recognised by content, and no others are tried: Pillow would pass EPS to Ghostscript, for example.
"""
FILTERS = {
    "crop": Image.Resampling.BILINEAR,
    "squash": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "antialias": Image.Resampling.BILINEAR,
}
"""Resampling filter of each resizing method."""
NAMED = 5
"""Number of unreadable images that an error names; it counts them all."""


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the names in :data:`FORMATS` that this Pillow can decode."""
    Image.init()
    optional = ("AVIF", "WEBP")  # asked for one by one: the list of all that Pillow supports imports tkinter
    return tuple(n for n in FORMATS if n in Image.OPEN and (n not in optional or features.check(n.lower())))


ENDINGS = tuple(ending for name in readable_formats() for ending in FORMATS[name])
"""Lower-case file endings that are read."""


def is_image(name: str) -> bool:
    """Return whether a file of this name is read as an image."""
    return name.lower().endswith(ENDINGS)


def is_clutter(path: str) -> bool:
    """Return whether a relative path is hidden or made by an operating system: ``__MACOSX/``, ``Thumbs.db``."""
    parts = PurePosixPath(path).parts
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in parts)


def open_image(source: Source, name: str | None = None) -> Image.Image:
    """Open an image upright, in 8 bits, in Pillow's mode L or RGB. All images are read by this function.

    EXIF orientation is applied, transparent parts become white, palettes and CMYK are converted to RGB. Values of 16
    bits, 32 bits and floats are scaled by :func:`eight_bits`. The first frame of an animation or multi-page file is
    read.

    Args:
        source: The image; see :data:`Source`.
        name: Name of the image in messages; its path if omitted.

    Raises:
        UserError: The image cannot be read or has invalid values. The message begins with the name.
    """
    name = name or (str(source) if isinstance(source, Path) else "image")
    try:
        if isinstance(source, np.ndarray):
            return Image.fromarray(_pixels(source, name))
        if isinstance(source, Image.Image):
            return _opaque(source, name)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=readable_formats()) as opened:
            return _opaque(opened, name)
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: not a readable image ({_reason(error)})") from error


def _opaque(opened: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(eight_bits(np.asarray(image), name))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else image.convert("L" if image.mode == "1" else "RGB")


def _pixels(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Return an array as uint8 [H, W] or [H, W, 3]; a fourth channel is opacity."""
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))) or 0 in values.shape:
        raise UserError(f"{name}: an array {values.dtype}{list(values.shape)} is no image")
    pixels = values if values.dtype == np.uint8 else eight_bits(values, name)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return np.asarray(_opaque(Image.fromarray(pixels), name))
    return np.ascontiguousarray(pixels)


def eight_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Scale values of another dtype to 8 bits. Pillow itself would clip them at 255.

    Floats span 0..1, 0..255 or 0..65535, the narrowest range that holds all values; integers 0..255 or 0..65535.
    Booleans become 0 and 255. Negative, larger and NaN values are refused, because their black and white points are
    unknown.
    """
    if values.dtype == bool:
        return np.where(values, 255, 0).astype(np.uint8)
    low, high = (float(values.min(initial=0)), float(values.max(initial=0))) if values.dtype.kind in "iuf" else (-1, -1)
    if not (low >= 0 and high <= 65535):
        found = "not-a-number" if np.isnan(low) or np.isnan(high) else f"{low:g} to {high:g}"
        raise UserError(
            f"{name}: {values.dtype} values from {found}; an image has 0 to 1, 0 to 255 or 0 to 65535: rescale it"
            if values.dtype.kind in "iuf"
            else f"{name}: values of type {values.dtype} are no image"
        )
    top = 1 if values.dtype.kind == "f" and high <= 1 else 255 if high <= 255 else 65535
    return (values.astype(np.float64) * (255 / top)).round().astype(np.uint8)


@dataclass(frozen=True)
class Preparation:
    """Preprocessing of an image of any size and mode, the same in training, evaluation and adaptation.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        height: Height in pixels.
        width: Width in pixels.
        resize: ``crop`` keeps the centre, ``squash`` the whole image; ``nearest`` and ``antialias`` keep the whole
            image too, and pick or average pixels.
        ink: ``light`` or ``dark`` if the training images are drawings, light on dark or dark on light. A drawing of the
            other kind, more than half of which is paper, is inverted. ``None`` for photographs.
    """

    channels: int
    height: int
    width: int
    resize: Resizing = "crop"
    ink: Ink | None = None

    def __call__(self, source: Source, name: str | None = None) -> NDArray[np.uint8]:
        """Return the image as uint8 [channels, height, width]; raises :class:`UserError` if it cannot be read."""
        pixels = self.resized(open_image(source, name))
        light_paper = pixels.mean() > 127.5
        return 255 - pixels if self.ink is not None and light_paper == (self.ink == "light") else pixels

    def resized(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return a Pillow image as uint8 [channels, height, width], without inversion."""
        image, size = image.convert("L" if self.channels == 1 else "RGB"), (self.width, self.height)
        if image.size != size:
            resample = FILTERS[self.resize]
            image = ImageOps.fit(image, size, resample) if self.resize == "crop" else image.resize(size, resample)
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_image(
    source: Source, size: int, colour: str, resize: Resize = "crop", name: str | None = None
) -> NDArray[np.uint8]:
    """Read an image as uint8 [1 or 3, size, size]; see :class:`Preparation`."""
    return Preparation(1 if colour == "grey" else 3, size, size, resize)(source, name)


def _reason(error: Exception) -> str:
    """Describe a decoding error; Pillow's own message may contain a buffer's address."""
    return "of no known format" if type(error).__name__ == "UnidentifiedImageError" else str(error)


def decode(
    sources: Iterable[tuple[int, T]], one: Callable[[T], NDArray[np.uint8]], into: NDArray[np.uint8], label: str
) -> None:
    """Compute ``into[row] = one(source)`` for all (row, source), in threads: Pillow decodes without the GIL.

    Args:
        sources: Rows and sources; only a few are held at a time.
        one: Function that decodes a source.
        into: Array to fill.
        label: Label of the progress line.

    Raises:
        UserError: Some images cannot be decoded. All others are decoded first; the message counts and names them.
    """
    refused: list[str] = []

    def several(chunk: list[tuple[int, T]]) -> tuple[int, list[str]]:
        wrong = []
        for row, source in chunk:
            try:
                into[row] = one(source)
            except UserError as error:
                wrong.append(str(error))
        return len(chunk), wrong

    def finish(job: Future[tuple[int, list[str]]]) -> None:
        count, wrong = job.result()
        refused.extend(wrong)
        progress.update(count)

    with ThreadPoolExecutor(cpus()) as pool, Progress(label, len(into), "images", summary=True) as progress:
        running: deque[Future[tuple[int, list[str]]]] = deque()
        try:
            for chunk in _chunks(iter(sources), 32):
                running.append(pool.submit(several, chunk))
                if len(running) > 4 * cpus():
                    finish(running.popleft())
            while running:
                finish(running.popleft())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if len(refused) == 1:
        raise UserError(refused[0])
    if refused:
        rest = f"; and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        raise UserError(f"{len(refused)} of {len(into)} images cannot be read: {'; '.join(refused[:NAMED])}{rest}")


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk
