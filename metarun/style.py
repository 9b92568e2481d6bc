"""One style for every plot: colours, signs, tick marks and titles. Importing it does not import matplotlib.

The colours can be told apart with each kind of colour blindness, and have a contrast of at least 3 to white. No plot
says anything by colour alone: learners differ in marker and line too, and right and wrong predictions have a sign.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from metarun.escape import for_plot, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#d55e00", "#101c8c", "#8c8c8c", "#5c1a00", "#904860", "#1890f0")
"""Colours of learners and other categories, in the order in which they are used."""
MARKERS = "os^DvPX"
LINES = ("-", "--", ":", "-.")
EARLY, LATE = PALETTE[0], PALETTE[1]
"""Colours of a learner before and after adaptation, or in the first and the last episode."""
RIGHT, WRONG = PALETTE[0], PALETTE[1]
"""Colours of right and wrong predictions, beside the signs of :func:`judged`."""
GOAL, TRUTH, GIVEN, QUIET = PALETTE[1], "#7a7a7a", "#111111", "#5c5c5c"
"""Colours of a hidden goal, of true values and references, of support examples, and of remarks."""
SHADE = "#eceff3"
"""Background of a support set."""
METRICS = {
    "accuracy": "accuracy (share of queries)",
    "mse": "mean squared error",
    "psnr": "signal-to-noise ratio (dB)",
    "return": "return (sum of rewards)",
    "tvd": "total variation distance",
}
"""Names of metrics on axes."""
SMALL, TINY = 8.0, 7.0
"""Font sizes of legends and remarks, and of text in small panels, in points."""


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Draw and save figures in this style in the block, whatever matplotlib's settings are."""
    import matplotlib as mpl
    import matplotlib.style
    from cycler import cycler

    with mpl.rc_context():
        matplotlib.style.use("default")
        mpl.rcParams.update(
            {
                "axes.axisbelow": True,
                "axes.formatter.useoffset": False,
                "axes.grid": False,
                "axes.labelsize": 9,
                "axes.prop_cycle": cycler(color=PALETTE),
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlelocation": "left",
                "axes.titlesize": 9,
                "figure.dpi": 110,
                "figure.titlesize": 10,
                "grid.color": "#e3e3e3",
                "image.cmap": "gray",
                "legend.fontsize": SMALL,
                "legend.framealpha": 0.8,
                "legend.edgecolor": "none",
                "lines.linewidth": 1.6,
                "lines.markersize": 4,
                "savefig.dpi": "figure",
                "savefig.facecolor": "white",
                "xtick.labelsize": SMALL,
                "ytick.labelsize": SMALL,
            }
        )
        yield


def save(figure: Figure, file: Path | IO[bytes]) -> None:
    """Write a figure as PNG. It is laid out before, as ``savefig`` itself would draw it twice for that."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)
    figure.savefig(file, format="png")


def look(number: int) -> dict[str, Any]:
    """Return colour, marker and line of learner ``number`` of a plot, for ``Axes.plot``."""
    count = len(PALETTE)
    return {
        "color": PALETTE[number % count],
        "marker": MARKERS[number % count],
        "linestyle": LINES[(number % count + number // count) % len(LINES)],
    }


def judged(text: str, right: bool | None) -> tuple[str, str]:
    """Return a prediction with ✓ or ✗ in front, and its colour; ``None``: the answer is not known."""
    if right is None:
        return text, GIVEN
    return (f"✓ {text}", RIGHT) if right else (f"✗ {text}", WRONG)


def metric_name(metric: str) -> str:
    """Return the name of a metric for an axis, with its unit where it has one."""
    first, *others = metric.split("_")
    return " ".join([METRICS.get(first, first), *others])


def counted(*axes: Axis) -> None:
    """Put the ticks of axes that count something, such as steps, at integers."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend(figure: Figure, *panels: Axes) -> None:
    """Put one legend of all that panels name below a figure, each name once, in as many columns as fit.

    A legend within a panel would hide data.
    """
    named: dict[str, Any] = {}
    for ax in panels:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    if not named:
        return
    handle_and_gaps = 6.5 * SMALL / 72
    column = max(inches_of(name, SMALL) for name in named) + handle_and_gaps
    columns = max(1, min(len(named), int(figure.get_figwidth() / column)))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns)


def later(count: int) -> list[tuple[float, ...]]:
    """Return ``count`` shades of one colour, from light (early) to dark (late)."""
    from matplotlib import colormaps

    return [colormaps["Blues"](0.4 + 0.6 * i / max(1, count - 1)) for i in range(count)]


def logarithmic(ax: Axes) -> None:
    """Scale the x-axis of panels logarithmically, with few enough labels for a narrow one."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 50 * low else (1.0, 3.0), numticks=6))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def entitle(figure: Figure, *lines: str) -> None:
    """Put lines of text above a figure, at its left edge and under its own title, wrapped to its width.

    The figure gets higher by what they need, so that the panels keep their size.
    """
    width, height = figure.get_size_inches()
    own, size = figure.get_suptitle(), 9.0
    every = [part for line in [*own.split("\n"), *lines] if line for part in wrapped(line, width - 0.25, size)]
    figure.set_size_inches(width, height + 0.175 * (len(every) - bool(own)))
    title = figure.suptitle("\n".join(every), x=0.1 / width, ha="left", fontsize=size)
    title.set_parse_math(False)


def wrapped(text: str, inches: float, size: float) -> list[str]:
    """Break a text into lines of at most ``inches`` in a font of ``size`` points, at spaces where there are some."""
    lines: list[str] = []
    for word in printable(text).split(" "):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and inches_of(joined, size) <= inches:
            lines[-1] = joined
        else:
            lines.append(fitted(word, inches, size))
    return lines


def fitted(text: object, inches: float, size: float) -> str:
    """Return a text on one line, cut to ``inches`` in a font of ``size`` points; what is cut becomes an ellipsis."""
    line = " ".join(printable(text).split())
    if inches_of(line, size) <= inches:
        return line
    low, high = 0, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if inches_of(f"{line[:middle]}…", size) <= inches else (low, middle - 1)
    return f"{line[:low].rstrip()}…"


@cache
def inches_of(text: str, size: float) -> float:
    """Return the width of a line of text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with warnings.catch_warnings():  # of letters that the font lacks, which are drawn as boxes
        warnings.simplefilter("ignore")
        width, *_ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)
    return 1.04 * float(width) / 72  # hinting makes letters up to that much wider


def label(text: object, inches: float = 3.0, size: float = SMALL) -> str:
    """Return a foreign name for a legend or a tick: cut to a width and escaped."""
    return for_plot(fitted(text, inches, size))
