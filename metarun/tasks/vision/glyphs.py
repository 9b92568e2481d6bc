"""Few-shot recognition of letters rendered from matplotlib's fonts; nothing is downloaded."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from metarun.errors import UserError, require
from metarun.tasks.class_data import ClassData
from metarun.tasks.files import Arrays, cached
from metarun.tasks.splits import split_classes
from metarun.tasks.vision.base import ImageFewShot
from metarun.types import Count, Episodes, Fraction, NonNegative, Positive

STYLES = (
    *(f"DejaVuSans{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{s}" for s in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{s}" for s in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10", "cmmi10"),
)
"""Text fonts only. Other fonts map the code points of letters to symbols or placeholders."""

MIN_STYLES = 8
"""Smallest number of styles of a class; 1 shot then leaves 7 queries."""
COMPARED_AT = 28
"""Size in pixels at which letters are compared, so that classes do not depend on the family's ``size``."""
BLOCK = 4
"""Height and width in pixels of the blocks by which letters that are far apart are told in less time."""
SAME, KIN, TWIN = 0.06, 0.12, 0.03
"""Thresholds of the mean distance of two letters over styles (see :func:`distances`).

Letters closer than ``SAME`` are one class. Letters closer than ``KIN``, or than ``TWIN`` in a single style (Latin m and
italic Cyrillic t), go to one split. Latin, Greek and Cyrillic A are below .06; O and its variants with a bar are at .1.
"""

Floats = NDArray[np.float32]
Letters = dict[int, dict[int, NDArray[np.uint8]]]
"""Images by code point and number of the style."""


class Glyphs(ImageFewShot):
    """Classification of rendered letters; the examples of a class are its styles (font, weight and slant).

    Classes are the Unicode letters without decomposition (no accents) that at least eight styles have. Letters that
    look the same (Latin, Greek and Cyrillic A) are one class. Cases of a letter, its variants with strokes and hooks,
    and near twins go to one split. Letters are centred, ink is 255, and all have one font size, unless they are too
    large for it.

    Args:
        seed: Seed of the episodes.
        way: Classes of an episode.
        shot: Support images of a class.
        query: Query images of a class.
        test_ways: Further ways to test.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
            (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.
        size: Height and width in pixels, at least 8.
        val: Largest fraction of the classes for meta-validation.
        test: Largest fraction of the classes for meta-test.
        split_seed: Seed of the split.
        augment: Strength of the random affine maps of meta-training images, 0 for none
            (:class:`~metarun.tasks.vision.base.ImageFewShot`).
    """

    ink = "light"

    def __init__(
        self,
        seed: int,
        *,
        way: Positive,
        shot: Positive,
        query: Count,
        test_ways: Sequence[Positive],
        size: Positive,
        val: Fraction,
        test: Fraction,
        split_seed: int,
        augment: NonNegative,
        unknown: Count,
        episodes: Episodes,
    ) -> None:
        require(size >= 8, f"task.size={size}: letters need at least 8 pixels")
        stored = cached("glyphs", fingerprint(size), lambda: build(size))
        data = ClassData(torch.from_numpy(stored["x"]), stored["offsets"], stored["names"].tolist(), ())
        self.groups = stored["groups"]
        self.size, self.split_seed, self.augment = size, split_seed, augment
        classes = split_classes(self.groups, val=val, test=test, seed=split_seed)
        shape = {
            "way": way,
            "shot": shot,
            "query": query,
            "test_ways": test_ways,
            "unknown": unknown,
            "episodes": episodes,
        }
        super().__init__(data, classes, seed=seed, name="glyphs", **shape)  # type: ignore[arg-type]

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "size": self.size,
            "split_seed": self.split_seed,
            **self.augmentation("augment"),
        }


def font_file(style: str) -> Path:
    """Return the path of a style's font in matplotlib's data."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{style}.ttf")
    if not path.exists():
        raise UserError(f"matplotlib's font {path} is missing; matplotlib 3.11 or newer has it")
    return path


def fingerprint(size: int) -> dict[str, Any]:
    """Return everything that the rendered letters depend on, the key of the cache."""
    from PIL import __version__ as pillow
    from PIL import features

    fonts = hashlib.sha256()
    for style in STYLES:
        fonts.update(font_file(style).read_bytes())
    return {
        "format": 1,
        "size": size,
        "fonts": fonts.hexdigest(),
        "pillow": pillow,
        "freetype": features.version("freetype2"),
        "unicode": unicodedata.unidata_version,
        "rules": [MIN_STYLES, COMPARED_AT, SAME, KIN, TWIN],
    }


def build(size: int) -> Arrays:
    """Return images ``x`` [N, 1, size, size] sorted by class, ``offsets`` [C + 1], ``names`` [C] and ``groups`` [C].

    Classes of one group must go to one split.
    """
    letters = {c: styles for c, styles in render(COMPARED_AT).items() if len(styles) >= MIN_STYLES}
    codes = sorted(letters)
    mean, least = distances([letters[c] for c in codes])
    same = components(len(codes), np.argwhere(mean < SAME))
    near = np.argwhere((same[:, None] == same) | (mean < KIN) | (least < TWIN))
    kin = components(len(codes), [*near, *relatives(codes)])

    images = letters if size == COMPARED_AT else render(size)
    x, names, groups = [], [], []
    taken: set[bytes] = set()
    for number in np.unique(same):
        members = np.flatnonzero(same == number)
        # Each style gives one image, from the first member that has it. Duplicates are dropped, since support and
        # query set, or two classes of an episode, could share them.
        styles = {s: image for i in reversed(members) for s, image in images[codes[i]].items()}
        distinct = {image.tobytes(): image for _, image in sorted(styles.items())}
        new = [image for pixels, image in distinct.items() if pixels not in taken]
        if len(new) >= MIN_STYLES:
            taken |= distinct.keys()
            x.append(np.stack(new)[:, None])
            names.append(chr(codes[members[0]]))
            groups.append(kin[members[0]])
    offsets = np.cumsum([0, *map(len, x)])
    return {"x": np.concatenate(x), "offsets": offsets, "names": np.array(names), "groups": np.array(groups)}


def render(size: int) -> Letters:
    """Render every letter of every style as a centred image, uint8 [size, size], scaled down if it is too large."""
    from matplotlib.ft2font import FT2Font
    from PIL.ImageFont import FreeTypeFont, Layout

    letters: Letters = {}
    for number, style in enumerate(STYLES):
        path = str(font_file(style))
        fonts: dict[int, FreeTypeFont] = {}
        for code, glyph in FT2Font(path).get_charmap().items():
            character = chr(code)
            if not glyph or not unicodedata.category(character).startswith("L"):
                continue  # glyph 0 is .notdef
            if unicodedata.decomposition(character):
                continue
            pixels = round(0.8 * size)  # capitals are then about .6 of the image high
            while pixels:
                if pixels not in fonts:
                    fonts[pixels] = FreeTypeFont(path, pixels, layout_engine=Layout.BASIC)
                ink = inked(fonts[pixels], character)
                largest = max(ink.shape)
                if largest <= size - 2:
                    break
                pixels = min(pixels - 1, pixels * (size - 2) // largest)
            if ink.size:
                top, left = (size - ink.shape[0]) // 2, (size - ink.shape[1]) // 2
                image = np.zeros((size, size), np.uint8)
                image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
                letters.setdefault(code, {})[number] = image
    return letters


def inked(font: Any, character: str) -> NDArray[np.uint8]:
    """Render a character, antialiased and cropped to its ink."""
    mask, _ = font.getmask2(character, mode="L")
    width, height = mask.size
    image = np.array(mask, dtype=np.uint8).reshape(height, width)
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else image[:0, :0]


def distances(letters: Sequence[dict[int, NDArray[np.uint8]]]) -> tuple[Floats, Floats]:
    """Return the mean and the smallest distance over the shared styles of each pair of letters, [C, C] each.

    The distance is the differing ink divided by all ink: 0 for equal images, 1 for disjoint ones. It is exact for pairs
    within ``KIN`` or ``TWIN``. For others a lower bound suffices: the distance of the images' sums over blocks.
    """
    total, shared = torch.zeros(2, len(letters), len(letters))
    least = torch.ones_like(total)
    for style in range(len(STYLES)):
        having = [i for i, styles in enumerate(letters) if style in styles]
        if not having:
            continue
        images = torch.from_numpy(np.stack([letters[i][style] for i in having])).float()
        blocks = F.avg_pool2d(images, BLOCK, ceil_mode=True, divisor_override=1).flatten(1)
        ink = blocks.sum(1)
        apart = torch.cdist(blocks, blocks, p=1) / (ink[:, None] + ink)
        pairs = torch.tensor(having)[:, None], torch.tensor(having)
        total[pairs] += apart
        shared[pairs] += 1
        least[pairs] = torch.minimum(least[pairs], apart)
    mean = torch.where(shared > 0, total / shared.clamp(min=1), 1.0)
    for i, j in ((mean < KIN) | (least < TWIN)).triu(1).nonzero().tolist():
        each = [distance(letters[i][style], letters[j][style]) for style in letters[i].keys() & letters[j].keys()]
        mean[i, j] = mean[j, i] = sum(each) / len(each)
        least[i, j] = least[j, i] = min(each)
    return mean.numpy(), least.numpy()


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the differing ink of two images divided by all their ink."""
    more, less = np.maximum(a, b), np.minimum(a, b)
    return float((more - less).sum(dtype=int) / (a.sum(dtype=int) + b.sum(dtype=int)))


def relatives(codes: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of positions in ``codes``: cases of a letter, and variants of a letter by their Unicode names."""
    position = {code: i for i, code in enumerate(codes)}
    named: dict[str, int] = {}
    pairs = []
    for i, code in enumerate(codes):
        for case in (chr(code).lower(), chr(code).upper(), chr(code).casefold()):
            if len(case) == 1 and ord(case) in position:
                pairs.append((i, position[ord(case)]))
        name = unicodedata.name(chr(code), f"U+{code:X}").split(" WITH ")[0]  # WITH STROKE, WITH HOOK, ...
        base = re.sub(r"\b(CAPITAL|SMALL|LETTER|MODIFIER) ", "", name)
        pairs.append((i, named.setdefault(base, i)))
    return pairs


def components(count: int, pairs: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """Return the smallest member of each node's connected component, [count]."""
    parent = list(range(count))

    def top(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for a, b in pairs:
        low, high = sorted((top(a), top(b)))
        parent[high] = low
    return np.array([top(i) for i in range(count)])
