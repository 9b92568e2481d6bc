"""``metarun show NAME [key=value ...]``: describe an option and its keys; with overrides, print what would run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from metarun.config.catalogue import Entry, catalogue
from metarun.config.check import INJECTED
from metarun.config.schema import declaration, is_section
from metarun.errors import UserError, nearest
from metarun.escape import printable

_GROUPS = ("task", "images", "model", "algorithm", "experiment", "runner", "tracker")


def run(words: list[str]) -> int:
    """Run the command. Names shared by two groups are written ``group/name``."""
    if not words or "=" in words[0]:
        raise UserError("show takes a name, as `metarun list` prints it: metarun show maml [task=regression/sinusoid]")
    found = [e for group in _GROUPS for e in catalogue(group) if words[0] in (e.name, f"{group}/{e.name}")]
    if not found:
        names = [e.name for group in _GROUPS for e in catalogue(group)]
        raise UserError(f"no option is called '{words[0]}'{nearest(words[0], names)}   `metarun list` prints all names")
    if len(words) > 1:
        if len(found) > 1:
            raise UserError(f"several are called '{words[0]}': {', '.join(f'{e.group}/{e.name}' for e in found)}")
        _show_run([f"{found[0].group}={found[0].name}", *words[1:]])
        return 0
    for entry in found:
        _show(entry)
    return 0


def _show_run(words: list[str]) -> None:
    """Print the configuration of ``words``, with the origin of every value that is not its component's default."""
    import yaml

    from metarun.config.check import check
    from metarun.config.compose import compose, named
    from metarun.config.origins import origin_of, origins

    composed = compose(words)
    check(named(composed))
    known = origins(composed.choices, composed.asked)
    lines: list[tuple[str, str]] = []

    def add(values: Mapping[str, Any], above: str, depth: int) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping) and value:
                lines.append((f"{'  ' * depth}{name}:", ""))
                add(value, f"{above}{name}.", depth + 1)
            else:
                text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
                text = text.removesuffix("...\n").strip()
                lines.append((f"{'  ' * depth}{name}: {text}", origin_of(f"{above}{name}", known) or ""))

    add({key: value for key, value in composed.config.items() if value is not None}, "", 0)
    print(printable("would run: " + " ".join(f"{group}={option}" for group, option in composed.choices.items()) + "\n"))
    width = min(max((len(line) for line, origin in lines if origin), default=0), 60)
    for line, origin in lines:
        print(printable(f"{line:<{width}}  # {origin}" if origin else line))


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
    if declared is not None:
        unset = [n for n in declared.parameters if n not in INJECTED and n not in entry.section]
        if unset and not entry.content.get("defaults"):
            print(f"\n  further keys (add with +{entry.group}.KEY=...): {', '.join(unset)}")
    print()
