"""Write the tables of the manual that come from the catalogue: python scripts/docs.py"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from metarun.config.catalogue import Entry, catalogue
from metarun.reports.reproductions import findings, recipes, row, stored

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "metarun" / "docs"
TABLE = re.compile(r"(<!-- table of (\w+): ([^>]*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
"""A generated table between two comments. The first one names the group, and the rows in their order."""
SHOWN = ("inner_lr", "inner_steps", "test_steps", "train_way", "rollouts", "discount", "norm", "outer_lr")
"""Keys of an algorithm whose defaults its row has."""


def main() -> None:
    """Rewrite every page whose tables have changed."""
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := with_tables(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


def with_tables(text: str) -> str:
    """A page with its tables as the catalogue is now."""
    return TABLE.sub(lambda found: found[1] + "\n".join(table(found[2], found[3].split())) + "\n" + found[4], text)


def table(group: str, names: list[str]) -> Iterator[str]:
    """The lines of one table."""
    if group == "measured":
        yield from measured()
        return
    entries = options(group)
    columns = {"task": "| task | what it is |", "model": "| model | what it is | reads |"}
    header = columns.get(group, "| algorithm | what it is | defaults |")
    yield header
    yield "|---" * (header.count("|") - 1) + "|"
    for name in names:
        entry = entries[name]
        cells = [f"`{name}`", linked(first_sentences(entry.line.rstrip())), *last_cell(entry)]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def first_sentences(line: str) -> str:
    """A line that goes on in the next one, without the sentence that is cut off."""
    return line if line.endswith((".", ")")) or ". " not in line else line[: line.rindex(". ") + 1]


@cache
def options(group: str) -> dict[str, Entry]:
    """The options of a group by name."""
    return {entry.name: entry for entry in catalogue(group)}


def last_cell(entry: Entry) -> list[str]:
    """What a model reads; the main defaults of an algorithm; nothing for a task."""
    if entry.group == "model":
        return [", ".join(entry.attributes["modalities"])]
    if entry.group == "algorithm":
        return [", ".join(f"`{key}={entry.section[key]}`" for key in SHOWN if entry.section.get(key) is not None)]
    return []


def measured() -> Iterator[str]:
    """Each algorithm's first number among the records of reproductions."""
    papers, results = recipes(), stored(ROOT / "outputs" / "reproduced")
    yield "| algorithm | recipe | metric | measured | published |"
    yield "|---" * 5 + "|"
    for name, paper in papers.items():
        if name in results:
            metric, published, ours, *_ = row(paper, findings(paper, results[name])[0])
            yield f"| `{algorithm_of(name)}` | `{name}` | {metric} | {ours} | {published} |"


def algorithm_of(recipe: str) -> str:
    """The algorithm that a recipe, what it builds on, or else its task's file chooses."""
    chosen = options("experiment")[recipe].choices
    return str(chosen.get("algorithm") or options("task")[chosen["task"]].choices["algorithm"])


def linked(text: str) -> str:
    """Text whose arXiv numbers are links."""
    return re.sub(r"(?:arXiv:)?\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    main()
