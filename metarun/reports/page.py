"""Rendering of a report as a self-contained HTML page and as Markdown with pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from metarun.escape import for_html as escape
from metarun.escape import for_markdown
from metarun.reports import tables
from metarun.reports.comparison import Comparison
from metarun.reports.scores import aggregate
from metarun.reports.tables import Table, as_markdown


@dataclass(frozen=True)
class Picture:
    """A plot of the report as a PNG file."""

    file: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A section of the report: text, tables and pictures under one title."""

    title: str
    text: str
    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()


def sections(comparison: Comparison, pictures: Sequence[Picture]) -> Iterator[Section]:
    """Yield the sections of a report in order. The prefix of a picture's file name decides its section."""

    def with_prefix(*prefixes: str) -> list[Picture]:
        return [picture for picture in pictures if picture.file.startswith(prefixes)]

    settings, overview = comparison.settings, tables.overview(comparison)
    overall = [overview] if overview else []
    yield Section("Results", "", [*overall, *(tables.results(setting) for setting in settings)], with_prefix("by_"))
    compared = [table for setting in settings if (table := tables.pairs(setting)) is not None]
    if compared:
        yield Section("Paired differences", "", compared)
    adapted = [table for setting in settings if (table := tables.efficiency(setting)) is not None]
    if adapted:
        yield Section("Adaptation", "", adapted, with_prefix("adaptation"))
    if with_prefix("learning"):
        yield Section("Learning curves", "Bands are 95 % intervals over seeds, or over validation tasks for one seed.",
                      [], with_prefix("learning"))  # fmt: skip
    if settings:
        found, table = aggregate(comparison.settings), tables.aggregates(comparison)
        yield Section("Over all settings", found if isinstance(found, str) else "", [table] if table else [],
                      with_prefix("profiles"))  # fmt: skip
        yield Section("Cost", "", [tables.cost(comparison)])
    missing = tables.left_out(comparison)
    if missing:
        yield Section("Left out", "", [missing])


def markdown(parts: Sequence[Section], about: str) -> str:
    """Render sections as Markdown that links to the picture files in the same folder."""
    lines = ["# Report", "", for_markdown(about), ""]
    for part in parts:
        lines += [f"## {for_markdown(part.title)}", ""]
        lines += [for_markdown(part.text), ""] if part.text else []
        for table in part.tables:
            lines += [as_markdown(table), ""]
        for picture in part.pictures:
            lines += [f"![{for_markdown(picture.caption)}]({picture.file})", ""]
    return "\n".join(lines)


STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5c6675; --line: #d9dee6; --paper: #ffffff; --back: #f5f6f8;
  --best: #e4f3e8; --near: #f3f7ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --soft: #9aa5b5; --line: #343c4a; --paper: #1b202a;
  --back: #12161d; --best: #1f3d2a; --near: #202d24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans",
  Arial, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 36px 0 12px; }
.about, .notes, figcaption { color: var(--soft); font-size: 13px; }
nav { margin: 12px 0 0; font-size: 14px; } nav a { color: inherit; margin-right: 16px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px;
  margin: 0 0 16px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 60%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 8px; }
th { text-align: left; font-size: 13px; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: 6px 12px 6px 0; vertical-align: top; } td { border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; padding-left: 12px; }
td.best { background: var(--best); font-weight: 700; } td.within { background: var(--near); }
td.path { overflow-wrap: anywhere; font-family: ui-monospace, Consolas, monospace; font-size: 13px; }
.notes { margin: 10px 0 0; padding-left: 18px; overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: 16px; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: 10px; padding: 12px;
  flex: 0 1 522px; }
figure.wide { flex-basis: 100%; }
figure img { display: block; width: 100%; height: auto; max-width: 900px; margin: 0 auto; }
figcaption { color: #5c6675; }
details { margin-top: 28px; font-size: 13px; color: var(--soft); overflow-wrap: anywhere; }
"""


def html(parts: Sequence[Section], about: str, comparison: Comparison) -> str:
    """Render sections as one HTML file with embedded pictures and without scripts or external links."""
    links = " ".join(f'<a href="#s{i}">{escape(part.title)}</a>' for i, part in enumerate(parts))
    body = "\n".join(f'<section id="s{i}">{_section(part)}</section>' for i, part in enumerate(parts))
    used = "".join(
        f"<li>{escape(str(run.path))} ({escape(str((run.meta.get('git') or {}).get('commit') or 'no commit')[:7])}, "
        f"{escape(str(run.meta.get('end') or ''))})</li>"
        for setting in comparison.settings
        for run in setting.runs
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>metarun report</title><style>{STYLE}</style></head>\n<body><main><h1>Report</h1>"
        f'<div class="about">{escape(about)}</div><nav>{links}</nav>\n{body}\n'
        f"<details><summary>the runs reported</summary><ul>{used}</ul></details></main></body></html>\n"
    )


def _section(part: Section) -> str:
    text = f"<p>{escape(part.text)}</p>" if part.text else ""
    pictures = "".join(map(_picture, part.pictures))
    return (
        f"<h2>{escape(part.title)}</h2>{text}"
        + "".join(map(_table, part.tables))
        + (f'<div class="pictures">{pictures}</div>' if pictures else "")
    )


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    wide = ' class="wide"' if picture.file.startswith("learning") else ""
    caption = escape(picture.caption)
    return (
        f'<figure{wide}><img alt="{escape(picture.caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    def alignment(i: int) -> str:
        return "" if i < table.text_columns else "number"

    head = "".join(f'<th class="{alignment(i)}">{escape(heading)}</th>' for i, heading in enumerate(table.headings))
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td class="{_classes(alignment(i), cell.standing, table.headings[i])}">{escape(cell.marked)}</td>'
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="card"><div class="scroll"><table><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + "</div>"
    )


def _classes(alignment: str, standing: str, heading: str) -> str:
    return " ".join(part for part in (alignment, standing, "path" if heading == "run" else "") if part)
