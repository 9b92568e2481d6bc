"""Escaping of foreign text (names, labels, messages, stored values), one function for each output format."""

from __future__ import annotations

import re
from typing import Any

_KEPT = "\n\t\u200c\u200d"  # the last two join and part letters and emoji
_FORMULA = "=+-@\t\r＝＋－＠"


def printable(text: object) -> str:
    """Escape control characters, including bidirectional ones, for a terminal or a log."""
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    from unicodedata import category

    return "".join(c if c in _KEPT or category(c) not in _HIDDEN else ascii(c)[1:-1] for c in shown)


_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def for_csv(value: Any) -> Any:
    """Escape a CSV cell: text that a spreadsheet would evaluate gets an apostrophe in front; numbers are unchanged."""
    if not isinstance(value, str):
        return value
    shown = printable(value.replace("\r\n", "\n"))
    return f"'{shown}" if value.lstrip(" \n").startswith(tuple(_FORMULA)) and not _are_numbers(value) else shown


def _are_numbers(text: str) -> bool:
    try:
        return all(isinstance(float(word), float) for word in text.split(" "))
    except ValueError:
        return False


def for_markdown(text: object) -> str:
    """Escape a line or a table cell of Markdown, including HTML."""
    from html import escape

    shown = escape(printable(" ".join(str(text).split("\n"))), quote=False)
    shown = re.sub(r"([\\`*\[\]|])", r"\\\1", shown)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", shown)  # within a word it is no markup


def for_html(text: object) -> str:
    """Escape text for HTML, also inside quotes."""
    from html import escape

    return escape(printable(text))


def for_plot(text: object) -> str:
    """Escape text for a matplotlib figure, where dollar signs start a formula."""
    return printable(text).replace("$", r"\$")


def for_tex(text: object) -> str:
    """Escape text for LaTeX, on one line. The signs of reports become macros; other letters are unchanged."""
    shown = "".join(_TEX.get(c, c) for c in printable(" ".join(str(text).split())))
    return shown.replace("--", "-{}-").replace("--", "-{}-")  # which LaTeX would join to a dash


_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{
        "±": r"$\pm$",
        "≈": r"$\approx$",
        "−": "$-$",
        "–": r"\textendash{}",
        "…": r"\ldots{}",
        "¹": r"\textsuperscript{1}",
    },
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$", "★": r"$\star$", "τ": r"$\tau$"},
}
