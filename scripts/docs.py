"""Write what the manual takes from the catalogue and the commands: python scripts/docs.py"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from metarun.cli.help import overview
from metarun.cli.pages import DOCS, OVERVIEW, WIDEST
from metarun.config.catalogue import Entry, catalogue
from metarun.config.paper import Paper
from metarun.reports.reproductions import findings, recipes, row, standing, stored

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- table of (\w+): ([^>]*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
"""A generated table between two comments. The first one names the group, and the rows in their order."""
SHOWN = ("inner_lr", "inner_steps", "test_steps", "train_way", "rollouts", "discount", "norm", "outer_lr")
"""Keys of an algorithm whose defaults its row has."""


def main() -> None:
    """Rewrite every page that has changed."""
    for page, new in pages():
        if not page.exists() or page.read_text(encoding="utf-8") != new:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


def pages() -> Iterator[tuple[Path, str]]:
    """The pages with tables, and the overview that ``metarun --help`` prints, as they should be."""
    for page in sorted(Path(DOCS).glob("*.md")):
        yield page, with_tables(page.read_text(encoding="utf-8"))
    yield Path(OVERVIEW), f"{overview(WIDEST)}\n"


def with_tables(text: str) -> str:
    """A page with its tables as the catalogue is now."""
    return TABLE.sub(lambda found: found[1] + "\n".join(table(found[2], found[3].split())) + "\n" + found[4], text)


def table(group: str, names: list[str]) -> Iterator[str]:
    """The lines of one table."""
    if group in RECORDS:
        yield from RECORDS[group](names)
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


def measured(_: list[str]) -> Iterator[str]:
    """Each algorithm's first number among the records of reproductions."""
    papers, results = recorded()
    yield "| algorithm | recipe | metric | measured | published |"
    yield "|---" * 5 + "|"
    for name, paper in papers.items():
        if name in results:
            metric, published, ours, *_ = row(paper, findings(paper, results[name])[0])
            yield f"| `{algorithm_of(name)}` | `{name}` | {metric} | {ours} | {published} |"


@cache
def recorded() -> tuple[dict[str, Paper], dict[str, dict[str, Any]]]:
    """The papers of all recipes, and the records."""
    return recipes(), stored(ROOT / "outputs" / "reproduced")


def verdicts(names: list[str]) -> Iterator[str]:
    """The numbers and verdicts of the records of some recipes."""
    papers, results = recorded()
    for name in names:
        if name not in results:
            yield f"`{name}` has no record."
            continue
        yield f"| `{name}` | published ({papers[name].where}) | ours | verdict |"
        yield "|---" * 4 + "|"
        for finding in findings(papers[name], results[name]):
            metric, published, ours, *_, verdict = row(papers[name], finding)
            yield f"| {metric} | {published} | {ours} | {verdict} |"
        yield f"| record | | | {standing(name, results[name])} |"


def few_shot(data: list[str]) -> Iterator[str]:
    """The records on some data sets of images, by set and shots, the best first; those that are missing are named."""
    papers, results = recorded()
    known = [name for name in papers if task_of(name).removeprefix("vision/") in data]
    rows = []
    for name in known:
        if name in results:
            protocol = results[name]["protocol"]
            finding = findings(papers[name], results[name])[0]
            rows.append((data.index(protocol["data"]), protocol["shot"], -finding.ours, name, finding))
    if rows:
        yield "| data | shots | recipe | accuracy, % | published | verdict | iterations | training, CPU minutes | |"
        yield "|---" * 9 + "|"
    last = None
    for place, shot, _, name, finding in sorted(rows, key=lambda each: each[:4]):
        _, published, ours, *_, verdict = row(papers[name], finding)
        setting = f"{TITLES.get(data[place], data[place])} | {shot}" if (place, shot) != last else " | "
        cells = [
            f"`{name}`",
            ours,
            published,
            verdict,
            *costs(papers[name], results[name]),
            remarks(name, results[name]),
        ]
        yield f"| {setting} | {' | '.join(cells)} |"
        last = place, shot
    if missing := [name for name in known if name not in results]:
        yield from ["", "Not run: " + ", ".join(f"`{name}`" for name in missing) + "."]


TITLES = {"cifar_fs": "CIFAR-FS", "fc100": "FC100"}
"""Names of data sets as papers write them."""


def costs(paper: Paper, result: dict[str, Any]) -> list[str]:
    """Iterations, of how many published ones if these are more, and CPU minutes that training took a seed."""
    done, whole = result["iterations"], paper.iterations
    times = [each for each in (result.get("cpu_s") or {}).values() if each is not None]
    share = f" of {whole:,}" if whole is not None and whole > done else ""
    return [f"{done:,}{share}", f"{sum(times) / len(times) / 60:.2g}" if times and done else ""]


def remarks(name: str, result: dict[str, Any]) -> str:
    """What a reader must know to compare a record with others."""
    protocol, model = result["protocol"], result["configuration"]["model"]
    found = []
    if "pretrained_on" in model:
        found.append(f"pretrained on {model['pretrained_on']}")
    if "transductive" in (protocol.get("norm"), str(protocol.get("inference")).partition(":")[0]):
        found.append("transductive")
    if (worth := standing(name, result)) != "sound":
        found.append(worth)
    return "; ".join(found)


RECORDS = {"measured": measured, "record": verdicts, "few_shot": few_shot}
"""Tables that are made from the records of reproductions."""


def task_of(recipe: str) -> str:
    """The task that a recipe or what it builds on chooses."""
    return str(options("experiment")[recipe].choices["task"])


def algorithm_of(recipe: str) -> str:
    """The algorithm that a recipe, what it builds on, or else its task's file chooses."""
    chosen = options("experiment")[recipe].choices
    return str(chosen.get("algorithm") or options("task")[chosen["task"]].choices["algorithm"])


def linked(text: str) -> str:
    """Text whose arXiv numbers are links."""
    return re.sub(r"(?:arXiv:)?\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    main()
