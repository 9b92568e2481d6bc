"""``metarun show NAME [key=value ...]``: describe an option and its keys; with overrides, print what would run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from metarun.cli.arguments import Arguments
from metarun.cli.output import print_json
from metarun.config.catalogue import Entry, entry
from metarun.config.check import INJECTED
from metarun.config.paths import options
from metarun.config.schema import declaration, is_section
from metarun.errors import UserError, nearest
from metarun.escape import printable

_GROUPS = ("task", "images", "model", "algorithm", "experiment", "runner", "tracker")


def run(arguments: Arguments) -> int:
    """Run the command. Names shared by two groups are written ``group/name``."""
    words = [*arguments.names, *arguments.overrides]
    if not arguments.names:
        raise UserError("show takes a name, as `metarun list` prints it: metarun show maml [task=regression/sinusoid]")
    asked = ((group, name) for group in _GROUPS for name in (words[0], words[0].removeprefix(f"{group}/")))
    found = [option for group, name in dict.fromkeys(asked) if (option := entry(group, name))]
    if not found:
        names = [name for group in _GROUPS for name, _ in options(group)]
        raise UserError(f"no option is called '{words[0]}'{nearest(words[0], names)}   `metarun list` prints all names")
    if len(words) > 1:
        if len(found) > 1:
            raise UserError(f"several are called '{words[0]}': {', '.join(f'{e.group}/{e.name}' for e in found)}")
        _show_run([f"{found[0].group}={found[0].name}", *words[1:]], arguments["--json"])
    elif arguments["--json"]:
        print_json([as_json(option) for option in found])
    else:
        for option in found:
            _show(option)
    return 0


def _show_run(words: list[str], as_json: bool) -> None:
    """Print the configuration of ``words``, with the origin of every value that is not its component's default."""
    import yaml

    from metarun.config.check import check
    from metarun.config.compose import compose, named
    from metarun.config.origins import origin_of, origins

    composed = compose(words)
    check(named(composed))
    known = origins(composed.choices, composed.asked)
    lines: list[tuple[str, str]] = []
    found: dict[str, str] = {}

    def add(values: Mapping[str, Any], above: str, depth: int) -> None:
        for name, value in values.items():
            key = f"{above}{name}"
            if isinstance(value, Mapping) and value:
                lines.append((f"{'  ' * depth}{name}:", ""))
                add(value, f"{key}.", depth + 1)
            else:
                text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
                text = text.removesuffix("...\n").strip()
                lines.append((f"{'  ' * depth}{name}: {text}", origin_of(key, known) or ""))
                if lines[-1][1]:
                    found[key] = lines[-1][1]

    add({key: value for key, value in composed.config.items() if value is not None}, "", 0)
    if as_json:
        print_json({"choices": composed.choices, "config": composed.config, "origins": found})
        return
    print(printable("would run: " + " ".join(f"{group}={option}" for group, option in composed.choices.items()) + "\n"))
    width = min(max((len(line) for line, origin in lines if origin), default=0), 60)
    for line, origin in lines:
        print(printable(f"{line:<{width}}  # {origin}" if origin else line))


def as_json(entry: Entry) -> dict[str, Any]:
    """Return an option as plain values."""
    declared = entry.declaration
    return {
        "group": entry.group,
        "name": entry.name,
        "about": declared.doc.strip() if declared else entry.line,
        "class": declared.target if declared else None,
        "file": str(entry.path),
        "keys": entry.settings,
        "choices": entry.choices,
        "further_keys": further_keys(entry),
    }


def further_keys(entry: Entry) -> list[str]:
    """Return the arguments of an option's class that its file leaves out."""
    declared = entry.declaration
    if declared is None or entry.content.get("defaults"):
        return []
    return [name for name in declared.parameters if name not in INJECTED and name not in entry.section]


def _show(entry: Entry) -> None:
    print(f"{entry.group}={entry.name}")
    declared = entry.declaration
    if declared is not None:
        print(printable(textwrap.indent(declared.doc.strip(), "  ")))
        print(f"\n  class  {declared.target}")
    print(f"  file   {entry.path}\n")
    for key, section in entry.section.items():
        if is_section(section):
            piece = declaration(str(section["_target_"]))
            print(f"  {key}: {piece.target}")
            print(textwrap.indent(piece.doc.strip(), "    ") + "\n")
    print(printable(textwrap.indent(entry.path.read_text().rstrip(), "    ")))
    if unset := further_keys(entry):
        print(f"\n  further keys (add with +{entry.group}.KEY=...): {', '.join(unset)}")
    print()
