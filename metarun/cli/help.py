"""``metarun help [TOPIC]``: the commands and topics, or one page of the manual. Imports no torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from metarun.cli.commands import COMMANDS
from metarun.errors import UserError, nearest

DOCS = Path(__file__).parents[1] / "docs"
WIDEST = 100
"""Columns of a page in a wide terminal."""

_ORDER = (
    "getting-started", "tasks", "algorithms", "models", "configuration", "sweeps", "tracking", "evaluation", "reports",
    "devices", "data", "extending", "python-api", "reproducing", "performance", "exactness", "safety",
    "troubleshooting", "contributing", "changelog",
)  # fmt: skip
"""The order in which topics are listed. Topics that are not named here follow by name."""

_OVERVIEW = """metarun: one runner for meta-learning

  metarun task=vision/omniglot model=conv4 algorithm=maml seed=1
  metarun -m task=vision/glyphs algorithm=maml,protonet seed=0,1,2     every combination, one run each
  metarun resume outputs/glyphs-protonet/2026-01-31_12-00-00-000000_s0

Commands
{commands}

Options of a training run
  -m, --multirun        sweep: keys may have several values, a,b,c
  --cfg job --resolve   print the configuration and stop
  --config-dir DIR      your own configuration files: they add options and shadow metarun's
  --info [WHAT]         Hydra's information (defaults, searchpath, plugins, ...)
  eval "$(metarun -sc install=bash)"    tab completion (bash, zsh, fish)

Manual: metarun help TOPIC
{topics}

Results lie under outputs/<name>/<time>_s<seed>/. METARUN_DATA names your data's folder,
METARUN_DEBUG=1 shows tracebacks.
"""


def run(words: list[str]) -> int:
    """Print the overview, the page of a topic, or the line of a command; returns the exit status."""
    words = [word for word in words if word not in ("-h", "--help")]
    if not words:
        print(overview())
        return 0
    if len(words) > 1:
        raise UserError("help takes one topic: metarun help getting-started   `metarun help` lists them")
    topic, pages = words[0], topics()
    if topic in pages:
        show(pages[topic].read_text(encoding="utf-8"))
    elif topic in COMMANDS:
        print(f"metarun {COMMANDS[topic]}")
    else:
        names = [*pages, *COMMANDS]
        raise UserError(f"no topic '{topic}'{nearest(topic, names)}   topics: {', '.join(pages)}")
    return 0


def topics() -> dict[str, Path]:
    """The pages of the manual by topic, in the order of the list."""
    found = {path.stem: path for path in sorted(DOCS.glob("*.md"))}
    return {topic: found[topic] for topic in (*_ORDER, *(t for t in found if t not in _ORDER)) if topic in found}


def summary(page: str) -> str:
    """The title of a page, its first line."""
    return page.splitlines()[0].lstrip("# ")


def overview() -> str:
    """The commands, the options of a training run, and the topics."""
    titles = {topic: summary(path.read_text(encoding="utf-8")) for topic, path in topics().items()}
    pages = {topic: title.partition(": ")[2] or title for topic, title in titles.items()}
    width = max(map(len, pages))
    return _OVERVIEW.format(
        commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()),
        topics="\n".join(f"  {topic:<{width}}  {text}" for topic, text in pages.items()),
    )


def show(page: str) -> None:
    """Print a page: rendered in a terminal, as plain Markdown elsewhere."""
    text = for_terminal(page)
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(text), width=min(console.width, WIDEST))


def for_terminal(page: str) -> str:
    """A page without comments and pictures, whose links to other pages are commands."""
    text = re.sub(r"<!--.*?-->\n?", "", page, flags=re.DOTALL)
    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)\n?", "", text)
    text = re.sub(r"\[([^\]]+)\]\(([\w-]+)\.md(?:#[\w-]*)?\)", r"\1 (`metarun help \2`)", text)
    return re.sub(r"\n{3,}", "\n\n", text)
