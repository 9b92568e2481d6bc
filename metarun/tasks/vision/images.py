"""Image files: reading one as it should be, and many in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metarun.errors import UserError
from metarun.tasks.files import Progress, cpus
from metarun.types import Resize

T = TypeVar("T")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
NAMED = 5
"""Unreadable images that an error names; it counts them all."""


def read_image(
    source: Path | bytes, size: int, colour: str, resize: Resize = "crop", name: str | None = None
) -> NDArray[np.uint8]:
    """One image as uint8 [1 or 3, size, size]: upright (EXIF), on white where transparent, rgb or grey.

    ``crop`` keeps the middle square, ``squash`` the whole image. ``name`` is what an error calls ``source``.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                image = eight_bits(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if colour == "grey" else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{name or str(source)}: not a readable image ({_reason(error)})") from error
    return fitted(image, size, resize)


def _reason(error: Exception) -> str:
    """Why; Pillow's own words name a buffer's address where there is no file."""
    return "of no known format" if type(error).__name__ == "UnidentifiedImageError" else str(error)


def fitted(image: Any, size: int, resize: Resize) -> NDArray[np.uint8]:
    """A Pillow image in L or RGB as uint8 [1 or 3, size, size]."""
    from PIL import Image, ImageOps

    if image.size != (size, size):
        if resize == "crop":
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        else:
            image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def eight_bits(image: Any) -> Any:
    """A 16-bit or float (0 to 1, or 16-bit) grey image in 8 bits; Pillow itself would clip at 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    scale = 255.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 / 65535
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def decode(
    sources: Iterable[tuple[int, T]], one: Callable[[T], NDArray[np.uint8]], into: NDArray[np.uint8], label: str
) -> None:
    """``into[row] = one(source)`` for all (row, source), in threads: Pillow decodes without Python's lock.

    Few sources are held at a time. Images that ``one`` refuses do not stop the others: at the end they are counted
    and named in one :class:`~metarun.errors.UserError`.
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

    with ThreadPoolExecutor(cpus()) as pool, Progress(label, len(into), 1, "images") as progress:
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
