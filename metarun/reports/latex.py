"""Rendering of a report's tables as LaTeX for a paper: booktabs, intervals, escaped names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from metarun.escape import for_tex, printable
from metarun.reports.page import Section
from metarun.reports.tables import STANDING, Cell, Table

NUMBER = re.compile(r"^([-−]?[\d.]+(?: ± [\d.]+)?)(?=¹?$)")
BOLD_IS_BEST = r"bold: best; $\approx$: mean within the interval of the best"


def latex(parts: Sequence[Section], made_by: str) -> str:
    """Render the tables of sections as LaTeX to ``\\input`` in a paper.

    Args:
        parts: The sections; runs left out are not for a paper.
        made_by: The command and the version that made the file, for a comment.
    """
    tables = [table for part in parts if part.title != "Left out" for table in part.tables]
    lines = [
        f"% made by {' '.join(printable(made_by).split())}",
        r"% \usepackage{booktabs,textcomp}  % in the preamble; names in other scripts need XeLaTeX or LuaLaTeX",
    ]
    for number, table in enumerate(tables, 1):
        lines += ["", *_table(table, number)]
    return "\n".join(lines) + "\n"


def _table(table: Table, number: int) -> list[str]:
    columns = "l" * table.text_columns + "r" * (len(table.headings) - table.text_columns)
    notes = [for_tex(note).replace(for_tex(STANDING), BOLD_IS_BEST) for note in table.notes]
    return [
        r"\begin{table}",
        r"  \centering\small",
        f"  \\caption{{{for_tex(table.title)}}}",
        f"  \\label{{tab:metarun-{number}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {' & '.join(map(for_tex, table.headings))} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(map(_cell, row))} \\\\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        *([f"  \\par\\smallskip\\footnotesize {'. '.join(notes)}."] if notes else []),
        r"\end{table}",
    ]


def _cell(cell: Cell) -> str:
    """Return a cell: a number with its interval in math mode, the best one bold."""
    found = NUMBER.match(cell.text)
    if found:
        text = f"${found[1].replace('±', chr(92) + 'pm').replace('−', '-')}${for_tex(cell.text[found.end() :])}"
    else:
        text = for_tex(cell.text)
    if cell.standing == "best":
        return rf"{{\boldmath\bfseries {text}}}"
    return text + (r" $\approx$" if cell.standing == "within" else "")
