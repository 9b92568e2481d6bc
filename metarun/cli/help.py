"""``metarun help [COMMAND|TOPIC]``: commands and topics, a command's help, or a page of the manual."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from metarun.cli.arguments import COMMON, Arguments, Command, Key, Option
from metarun.cli.commands import COMMANDS
from metarun.cli.pages import DOCS, WIDEST, columns
from metarun.errors import UserError, nearest

_ORDER = (
    "getting-started", "command-line", "tasks", "algorithms", "models", "configuration", "sweeps", "tracking",
    "evaluation", "reports",
    "devices", "data", "extending", "python-api", "reproducing", "performance", "exactness", "safety",
    "troubleshooting", "contributing", "changelog",
)  # fmt: skip
"""The order in which topics are listed. Topics that are not named here follow by name."""

_OVERVIEW = """metarun: one runner for meta-learning

  metarun task=vision/omniglot model=conv4 algorithm=maml seed=1
  metarun -m task=vision/glyphs algorithm=maml,protonet seed=0,1,2
  metarun resume outputs/glyphs-protonet/2026-01-31_12-00-00-000000_s0

Commands: metarun COMMAND --help
{commands}

Manual: metarun help TOPIC
{topics}

Options of every command
{common}

Results lie under outputs/<name>/<time>_s<seed>/.
METARUN_DATA names your data's folder, METARUN_DEBUG=1 shows tracebacks.
Tab completion for bash, zsh and fish: eval "$(metarun -sc install=bash)"
"""


def run(arguments: Arguments) -> int:
    """Print the overview, the help of a command, or the page of a topic; returns the exit status."""
    if not arguments.names:
        print(overview(columns()))
        return 0
    if len(arguments.names) > 1:
        raise UserError("help takes one topic: metarun help getting-started   `metarun help` lists them")
    topic, pages = arguments.names[0], topics()
    if topic in COMMANDS:
        print(command_help(COMMANDS[topic]))
    elif topic in pages:
        with open(pages[topic], encoding="utf-8") as page:
            show(page.read())
    else:
        names = [*pages, *COMMANDS]
        raise UserError(f"no topic '{topic}'{nearest(topic, names)}   topics: {', '.join(pages)}")
    return 0


def command_help(command: Command) -> str:
    """Return the help of a command: usage, what it does, its options and keys with their defaults, two examples."""
    width = columns()
    lines = [f"usage: {command.words}", "", *textwrap.wrap(command.about, width), ""]
    if keys := [*command.keys, *keys_in(command.keys_file)]:
        lines += [
            "keys",
            *rows([(f"{key.name}={key.value}", with_default(key.help, key.default)) for key in keys], width),
            "",
        ]
    listed = [each for each in command.options if not each.hidden]
    options = [(shown_as(each), with_default(each.help, default_of(each))) for each in listed]
    lines += ["options", *rows([*options, *((shown_as(each), each.help) for each in COMMON)], width), ""]
    lines += ["examples"]
    for line, what in command.examples:
        lines += [f"  {line}", f"      {what}"]
    return "\n".join([*lines, "", f"More: metarun help {command.page}"])


def rows(cells: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Return rows of two columns; the second is wrapped, and begins on a line of its own where the first is wide."""
    left = min(max(len(name) for name, _ in cells), 24)
    made: list[str] = []
    for name, text in cells:
        wrapped = textwrap.wrap(text, max(width - left - 4, 20)) or [""]
        if len(name) > left:
            made.append(f"  {name}")
            name = ""
        made += [f"  {first:<{left}}  {rest}".rstrip() for first, rest in zip_longest([name], wrapped, fillvalue="")]
    return made


def shown_as(option: Option) -> str:
    """Return an option as it is typed, with its short form: ``-c, --cfg job|all``."""
    name = f"{option.short}, {option.name}" if option.short else option.name
    if not option.value:
        return name
    return f"{name}[={option.value}]" if option.implied is not None else f"{name} {option.value}"


def default_of(option: Option) -> str:
    """Return the default of an option: off for a flag."""
    return option.default or ("" if option.value else "off")


def with_default(text: str, default: str) -> str:
    """Return what an option does with its default in brackets."""
    if default == "required":
        return f"{text} [required]"
    return f"{text} [default: {default}]" if default else text


def keys_in(file: str) -> Iterator[Key]:
    """Yield the keys that a YAML file below conf/ declares, with their defaults and the comments beside or above."""
    if not file:
        return
    from metarun.config.paths import conf_directory  # it imports a YAML parser, which takes time

    above = ""
    for line in (conf_directory() / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            above = line.lstrip("# ")
        elif found := re.fullmatch(r"(\w+):\s*(.*?)(?:\s+# (.*))?", line):
            yield Key(found[1], found[3] or above, "VALUE", found[2])


def topics() -> dict[str, str]:
    """The pages of the manual by topic, in the order of the list."""
    files = sorted(file for file in os.listdir(DOCS) if file.endswith(".md"))
    found = {file.removesuffix(".md"): os.path.join(DOCS, file) for file in files}
    return {topic: found[topic] for topic in (*_ORDER, *(t for t in found if t not in _ORDER)) if topic in found}


def summary(page: str) -> str:
    """The title of a page, its first line."""
    return page.partition("\n")[0].lstrip("# ")


def overview(width: int) -> str:
    """The commands, the topics, and the options of every command, on lines of at most ``width`` characters."""
    titles = {}
    for topic, path in topics().items():
        with open(path, encoding="utf-8") as page:
            titles[topic] = summary(page.readline())
    return _OVERVIEW.format(
        commands="\n".join(rows([(name, command.summary) for name, command in COMMANDS.items()], width)),
        topics="\n".join(rows([(topic, title.partition(": ")[2] or title) for topic, title in titles.items()], width)),
        common="\n".join(rows([(shown_as(option), option.help) for option in COMMON], width)),
    ).rstrip()


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
