"""``metarun show NAME``: what a task, model, algorithm or experiment is, and its keys with their defaults."""

from __future__ import annotations

import textwrap

from metarun.config.catalogue import Entry, catalogue
from metarun.config.check import INJECTED
from metarun.config.schema import declaration, is_section
from metarun.errors import UserError, nearest
from metarun.escape import printable

_GROUPS = ("task", "images", "model", "algorithm", "experiment", "runner", "tracker")


def run(words: list[str]) -> int:
    """The command. ``NAME`` may be given as ``group/name`` where two groups share a name."""
    if len(words) != 1:
        raise UserError("show takes one name, as `metarun list` prints it: metarun show maml")
    found = [e for group in _GROUPS for e in catalogue(group) if words[0] in (e.name, f"{group}/{e.name}")]
    if not found:
        names = [e.name for group in _GROUPS for e in catalogue(group)]
        raise UserError(f"nothing is called '{words[0]}'{nearest(words[0], names)}   `metarun list` prints all names")
    for entry in found:
        _show(entry)
    return 0


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
