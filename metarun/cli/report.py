"""``metarun report DIR... [out=FOLDER]``: compare runs, in the terminal or as files and one HTML page."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from metarun import style
from metarun.cli.arguments import Arguments
from metarun.cli.output import print_json
from metarun.errors import UserError, require
from metarun.escape import printable
from metarun.progress import track

if TYPE_CHECKING:
    from metarun.reports.comparison import Comparison


def run(arguments: Arguments) -> int:
    """Run the command. It does not import torch."""
    folders, out = read(arguments)
    # Imported here so that usage errors are reported at once.
    from metarun.reports.comparison import compare
    from metarun.reports.runs import gather

    comparison = compare(*gather(folders))
    if out is not None:
        write(comparison, folders, out)
    if arguments["--json"]:
        from metarun.reports.plain import as_dict

        print_json(as_dict(comparison))
    elif out is None:
        show(comparison)
    else:
        print(f"{about(comparison)}\nreport     {out / 'report.html'}")
    return 0


def read(arguments: Arguments) -> tuple[list[str], Path | None]:
    """Return the folders of the runs, and the output folder if one is given."""
    given = arguments.own_keys().get("out", "null")
    usage = f"report needs run directories, or folders that hold them: {arguments.command.words}"
    require(bool(arguments.names), usage)
    out = None if given == "null" else Path(given).expanduser()
    require(out is None or not out.exists() or out.is_dir(), f"report: out={out} is a file, not a folder")
    return arguments.names, out


def show(comparison: Comparison) -> None:
    """Print the tables to the terminal."""
    from rich.console import Console

    from metarun.reports.page import sections
    from metarun.reports.tables import as_rich

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=200)
    console.print(about(comparison))
    for section in sections(comparison, []):
        if section.text:
            console.print(printable(f"{section.title}: {section.text}"))
        for table in section.tables:
            console.print(as_rich(table))
            for note in table.notes:
                console.print(printable(f"  {note}"), style="dim", soft_wrap=True)
            console.print()


def write(comparison: Comparison, folders: Sequence[str], out: Path) -> None:
    """Write the report's files."""
    from metarun.reports import tables
    from metarun.reports.curves import figures
    from metarun.reports.latex import latex
    from metarun.reports.page import Picture, html, markdown, sections
    from metarun.tracking.files import atomic_write

    pictures = []
    with style.applied():
        for name, caption, figure in track(figures(comparison), "drawing", 0, "pictures"):
            buffer = io.BytesIO()
            figure.set_dpi(130)
            style.save(figure, buffer)
            pictures.append(Picture(f"{name}.png", caption, buffer.getvalue()))
    parts, subtitle = list(sections(comparison, pictures)), f"{about(comparison)}: {' '.join(folders)}"
    made_by = f"{shlex.join(['metarun', 'report', *folders, f'out={out}'])}  (metarun {version('metarun')})"
    files = {
        "report.md": markdown(parts, subtitle, made_by).encode(),
        "report.csv": tables.results_csv(comparison).encode(),
        "pairs.csv": tables.pairs_csv(comparison).encode(),
        "report.tex": latex(parts, made_by).encode(),
        "report.html": html(parts, subtitle, comparison, made_by).encode(),
        **{picture.file: picture.png for picture in pictures},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            atomic_write(out / name, content)
    except OSError as error:
        raise UserError(f"report: cannot write to out={out}: {error.strerror}") from None
    for left in comparison.left_out:
        print(printable(f"left out   {left.path}: {left.state}, {left.reason}"), file=sys.stderr)


def about(comparison: Comparison) -> str:
    """Describe the number of runs, configurations and settings."""
    runs = sum(len(setting.runs) for setting in comparison.settings)
    rows = sum(len(setting.rows) for setting in comparison.settings)
    missing = f", {len(comparison.left_out)} left out" if comparison.left_out else ""
    counts = ((runs, "finished run"), (rows, "configuration"), (len(comparison.settings), "setting"))
    of_runs, of_rows, of_settings = (f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts)
    return f"{of_runs} of {of_rows} in {of_settings}{missing}"
