"""Sheets: a support set beside queries with their predicted classes, one row for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metarun import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME, GAP, HEAD, CAPTION = 1.5, 0.3, 0.3, 0.2
"""Inches: largest width of the class names, width between support set and queries, heights of heads and captions."""
TEXT, PREDICTED, LINE = 6.2, 2.6, 0.22
"""Inches of a sheet of texts: width of the texts and of the predictions, and height of a line."""


@dataclass(frozen=True)
class Query:
    """A query with its prediction.

    Attributes:
        item: The image [height, width, channels], with values in 0..1, or the text.
        label: The predicted class.
        right: Whether that is the true class; ``None`` if it is not known.
        probability: Probability of the predicted class; ``None`` to leave it out.
    """

    item: Any
    label: str
    right: bool | None
    probability: float | None = None

    def caption(self, inches: float, size: float) -> tuple[str, str]:
        """Return sign, label and probability in at most ``inches``, and their colour."""
        sure = "" if self.probability is None else f" {100 * self.probability:.0f} %"
        room = inches - style.inches_of(style.judged(sure, self.right)[0], size)
        return style.judged(style.fitted(self.label, room, size) + sure, self.right)


@dataclass(frozen=True)
class Row:
    """A class: its support examples, and the queries drawn in its row."""

    name: str
    support: Sequence[Any]
    queries: Sequence[Query] = ()
    remark: str = ""


def episode_title(right: float, count: int, remark: str) -> str:
    """Return the title of a sheet of one test episode.

    Args:
        right: Share of its queries that are predicted right.
        count: Number of its queries.
        remark: What the sheet leaves out of them, or an empty string.
    """
    counted = f"{100 * right:.0f} % of its {count} queries right"
    return f"One episode of unseen classes: {', '.join(filter(None, [counted, remark]))}; ✓ right, ✗ wrong"


def image_sheet(rows: Sequence[Row], queries_are: str, cell: float = 0.95) -> Figure:
    """Draw images: the support set on a grey background at the left, the queries at the right under their predictions.

    A wrong prediction has the sign ✗ and a dashed frame.

    Args:
        rows: The classes.
        queries_are: Head of the queries.
        cell: Width of an image in inches.
    """
    shots, queries = max(len(row.support) for row in rows), max(len(row.queries) for row in rows)
    widest = max(style.inches_of(text, style.SMALL) for row in rows for text in (row.name, row.remark))
    name = min(NAME, widest + 0.15)
    left = name + shots * cell + GAP
    width, height = left + queries * cell, HEAD + len(rows) * (cell + CAPTION)
    figure, ax = _page(max(width, 4.5), height)
    _shade(ax, name, 0, shots * cell, height)
    _head(ax, name, "support set", max(shots * cell, 0.9))
    if queries:
        _head(ax, left, queries_are, width - left if queries * cell > 2 else 4)
    for number, row in enumerate(rows):
        top = HEAD + number * (cell + CAPTION)
        lines = style.wrapped(row.name, name - 0.1, style.SMALL)[:3]
        lines = [*lines, *([row.remark] if row.remark else [])]
        _text(ax, 0, top + CAPTION + cell / 2, "\n".join(lines), size=style.SMALL)
        for column, image in enumerate(row.support):
            _image(ax, image, name + column * cell, top + CAPTION, cell)
        for column, query in enumerate(row.queries):
            x = left + column * cell
            _image(ax, query.item, x, top + CAPTION, cell)
            caption, colour = query.caption(0.9 * cell, style.TINY)
            _text(ax, x + 0.03 * cell, top + CAPTION / 2 + 0.01, caption, size=style.TINY, color=colour)
            if query.right is False:
                _frame(ax, x + 0.02 * cell, top + CAPTION + 0.02 * cell, 0.96 * cell)
    return figure


def text_sheet(rows: Sequence[Row]) -> Figure:
    """Draw texts, a line each: first the support set of a class on a grey background, then its queries."""
    name = 0.15 + min(1.5 * NAME, max(style.inches_of(row.name, style.SMALL) for row in rows))
    width, predicted = name + TEXT + PREDICTED, name + TEXT
    height = HEAD + sum(LINE * max(1, len(row.support) + len(row.queries)) + 0.06 for row in rows)
    figure, ax = _page(width, height)
    for x, head in ((0, "class"), (name, "text"), (predicted, "predicted class")):
        _head(ax, x, head, PREDICTED)
    y = HEAD
    for row in rows:
        ax.plot((0, width), (y, y), color="0.75", lw=0.8)
        y += 0.03
        _text(ax, 0, y + LINE / 2, style.fitted(row.name, name - 0.1, style.SMALL), size=style.SMALL)
        if row.remark and len(row.support) + len(row.queries) > 1:
            _text(ax, 0, y + 1.5 * LINE, row.remark, size=style.TINY, color=style.QUIET)
        _shade(ax, name - 0.05, y, width - name + 0.05, LINE * len(row.support))
        lines = [(text, "support set", style.QUIET) for text in row.support]
        lines += [(query.item, *query.caption(PREDICTED - 0.1, style.SMALL)) for query in row.queries]
        for number, (text, told, colour) in enumerate(lines):
            middle = y + (number + 0.5) * LINE
            _text(ax, name, middle, style.fitted(text, TEXT - 0.15, style.SMALL), size=style.SMALL)
            _text(ax, predicted, middle, told, size=style.SMALL, color=colour)
        y += 0.03 + LINE * max(1, len(lines))
    return figure


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with axes in inches, whose origin is the upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width + 0.2, height + 0.1), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.set_axis_off()
    return figure, ax


def _text(ax: Axes, x: float, y: float, text: str, *, size: float, color: str = style.GIVEN, **others: Any) -> None:
    ax.text(x, y, text, fontsize=size, color=color, va="center", parse_math=False, **others)


def _head(ax: Axes, x: float, text: str, inches: float) -> None:
    _text(ax, x + 0.03, HEAD / 2, style.fitted(text, inches, style.SMALL), size=style.SMALL, weight="bold")


def _shade(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, color=style.SHADE, lw=0, zorder=0))


def _frame(ax: Axes, x: float, y: float, size: float) -> None:
    from matplotlib.patches import Rectangle

    look: dict[str, Any] = {"fill": False, "edgecolor": style.WRONG, "ls": "--", "lw": 1.5}
    ax.add_patch(Rectangle((x, y), size, size, **look))


def _image(ax: Axes, image: Any, x: float, y: float, cell: float) -> None:
    """Draw an image [height, width, 1 or 3] into a square, in its own proportions."""
    height, width = image.shape[:2]
    inner = 0.94 * cell
    wide, high = inner * min(1, width / height), inner * min(1, height / width)
    left, top = x + (cell - wide) / 2, y + (cell - high) / 2
    pixels = image[..., 0] if image.shape[2] == 1 else image
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=(left, left + wide, top + high, top), aspect="equal",
              interpolation="nearest")  # fmt: skip
