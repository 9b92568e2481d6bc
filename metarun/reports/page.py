"""Rendering of a report as a self-contained HTML page and as Markdown with pictures."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metarun.escape import for_html as escape
from metarun.escape import for_markdown
from metarun.reports import tables
from metarun.reports.comparison import Comparison
from metarun.reports.overview import overview
from metarun.reports.scores import aggregate
from metarun.reports.tables import Cell, Table, as_markdown


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

    settings, across = comparison.settings, overview(comparison)
    overall = [across] if across else []
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


def markdown(parts: Sequence[Section], about: str, made_by: str = "") -> str:
    """Render sections as Markdown that links to the picture files in the same folder.

    Args:
        parts: The sections.
        about: What is compared.
        made_by: The command and the version that made the file.
    """
    lines = ["# Report", "", for_markdown(about), ""]
    lines += [f"Made by {for_markdown(made_by)}", ""] if made_by else []
    for part in parts:
        lines += [f"## {for_markdown(part.title)}", ""]
        lines += [for_markdown(part.text), ""] if part.text else []
        for table in part.tables:
            lines += [as_markdown(table), ""]
        for picture in part.pictures:
            lines += [f"![{for_markdown(picture.caption)}]({picture.file})", ""]
    return "\n".join(lines)


HERE = Path(__file__).parent


def html(parts: Sequence[Section], about: str, comparison: Comparison, made_by: str = "") -> str:
    """Render sections as one HTML file with embedded pictures and without external links.

    Its only script sorts tables. The page's policy forbids any other, and any request.

    Args:
        parts: The sections.
        about: What is compared.
        comparison: The comparison, whose runs are listed.
        made_by: The command and the version that made the page.
    """
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = " ".join(f'<a href="#s{i}">{escape(part.title)}</a>' for i, part in enumerate(parts))
    body = "\n".join(f'<section id="s{i}">{_section(part)}</section>' for i, part in enumerate(parts))
    used = "".join(
        f"<li>{escape(str(run.path))} ({escape(str((run.meta.get('git') or {}).get('commit') or 'no commit')[:7])}, "
        f"{escape(str(run.meta.get('end') or ''))})</li>"
        for setting in comparison.settings
        for run in setting.runs
    )
    made = f"<p>made by <code>{escape(made_by)}</code></p>" if made_by else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>metarun report</title><style>{style}</style></head>\n<body><main><h1>Report</h1>"
        f'<div class="about"><p>{escape(about)}</p>{made}</div><nav aria-label="sections">{links}</nav>\n{body}\n'
        f"<details><summary>the runs reported</summary><ul>{used}</ul></details></main>"
        f"<script>{script}</script></body></html>\n"
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

    def cell(i: int, cell: Cell) -> str:
        name, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
        classes = " ".join(filter(None, (alignment(i), cell.standing, "path" if table.headings[i] == "run" else "")))
        return f'<{name}{scope} class="{classes}">{escape(cell.marked)}</{name}>'

    head = "".join(
        f'<th scope="col" class="{alignment(i)}">{escape(heading)}</th>' for i, heading in enumerate(table.headings)
    )
    rows = "".join(f"<tr>{''.join(cell(i, each) for i, each in enumerate(row))}</tr>" for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    title = escape(table.title)
    return (
        f'<div class="card"><p class="title" aria-hidden="true">{title}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + "</div>"
    )
