"""``metarun list [GROUP] [key=value ...]``: the options, and which of them can be combined."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from metarun.cli.arguments import Arguments
from metarun.cli.help import columns
from metarun.cli.output import print_json
from metarun.config.catalogue import Entry, catalogue
from metarun.config.check import misfit
from metarun.config.paths import options
from metarun.errors import UserError, listed, nearest, shortened
from metarun.escape import printable
from metarun.reports.reproductions import findings, metric_of, published, reached, recipes, row, status_of, stored

AXES = ("task", "model", "algorithm")
"""Groups that are combined."""
LISTS = {"tasks": "task", "models": "model", "algorithms": "algorithm", "recipes": "experiment"}
"""Lists of options, each with its group."""
COMBINATIONS = "combinations"
ALIASES = {"experiments": "recipes"}
_HINTS = """\
metarun list GROUP               a line for each, GROUP one of tasks, models, algorithms, recipes
metarun list GROUP PART          those whose name contains PART: metarun list recipes maml
metarun list GROUP key=value     those that fit: metarun list algorithms task=vision/omniglot
metarun list combinations        the table of tasks, algorithms and models that fit
metarun show NAME                all about one"""


def run(arguments: Arguments) -> int:
    """Run the command."""
    wanted = list_of(arguments.names)
    filters = arguments.own_keys()
    check_filters(wanted, filters)
    part = arguments.names[1].lower() if len(arguments.names) > 1 else ""
    if wanted == COMBINATIONS:
        rows = list(combinations(filters))
        if arguments["--json"]:
            print_json([{"task": task, "algorithm": algorithm, "models": models} for task, algorithm, models in rows])
        else:
            print_columns([(task, algorithm, ", ".join(models)) for task, algorithm, models in rows])
        return 0
    chosen = {wanted: LISTS[wanted]} if wanted else LISTS
    found = {plural: named(matching(group, filters), part) for plural, group in chosen.items()}
    if arguments["--json"]:
        print_json({plural: list(as_json(chosen[plural], entries)) for plural, entries in found.items()})
    elif wanted is None:
        print_overview()
    elif wanted == "recipes":
        print_recipes(found[wanted], details=bool(arguments["--verbose"]))
    else:
        print_options(found[wanted])
    return 0


def named(entries: Iterable[Entry], part: str) -> Iterator[Entry]:
    """Yield the options whose name contains ``part``; raises :class:`UserError` if there are none."""
    names = []
    for each in entries:
        names.append(each.name)
        if part in each.name.lower():
            yield each
    if part and not any(part in name.lower() for name in names):
        raise UserError(f"no name in this list contains '{shortened(part)}'{nearest(part, names)}")


def list_of(names: list[str]) -> str | None:
    """Return the list that is asked for; ``None`` for the overview."""
    lists = [*LISTS, COMBINATIONS]
    if len(names) > 2 or (len(names) == 2 and names[0] == COMBINATIONS):
        raise UserError(f"list takes one of {', '.join(lists)}, and part of a name: metarun list recipes maml")
    word = ALIASES.get(names[0], names[0]) if names else None
    if word is not None and word not in lists:
        raise UserError(f"unknown list '{word}'{nearest(word, lists)}   lists: {', '.join(lists)}")
    return word


def check_filters(wanted: str | None, filters: Mapping[str, str]) -> None:
    """Raise :class:`UserError` for a filter that the list does not have, or that names no option."""
    for key, value in filters.items():
        if wanted is None:
            example = "recipes" if key == "status" else "tasks" if key == "algorithm" else "algorithms"
            raise UserError(f"{key}={value} filters one list: metarun list {example} {key}={value}")
        if key == LISTS.get(wanted) or (key == "status" and wanted != "recipes"):
            raise UserError(f"metarun list {wanted} cannot be filtered by {key}=")
        names = [each.name for each in catalogue(key)] if key in AXES else kinds() if key == "kind" else [value]
        if value not in names:
            raise UserError(f"unknown {key} '{value}'{nearest(value, names)}   available: {listed(names)}")


def kinds() -> list[str]:
    """Return the kinds of tasks."""
    return list(dict.fromkeys(str(task.attributes.get("kind")) for task in catalogue("task")))


def matching(group: str, filters: Mapping[str, str]) -> Iterator[Entry]:
    """Yield the options of a group that pass the filters."""
    if group == "experiment":
        yield from matching_recipes(filters)
        return
    axes = axes_of(filters)
    for each in axes[group]:
        if not filters or any(all_fitting({**axes, group: [each]})):
            yield each


def axes_of(filters: Mapping[str, str]) -> dict[str, list[Entry]]:
    """Return the options of each axis that the filters leave."""
    axes = {axis: [each for each in catalogue(axis) if filters.get(axis, each.name) == each.name] for axis in AXES}
    if "kind" in filters:
        axes["task"] = [each for each in axes["task"] if each.attributes.get("kind") == filters["kind"]]
    return axes


def all_fitting(axes: Mapping[str, Iterable[Entry]]) -> Iterator[tuple[Entry, Entry, Entry]]:
    """Yield every (task, algorithm, model) that can be combined."""
    for task in axes["task"]:
        for algorithm in axes["algorithm"]:
            if not misfit(task.attributes, None, algorithm.attributes):
                for model in axes["model"]:
                    if not misfit(task.attributes, model.attributes, algorithm.attributes):
                        yield task, algorithm, model


def combinations(filters: Mapping[str, str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield every compatible pair of task and algorithm with the models that fit, the task's own first."""
    for (task, algorithm), found in groupby(all_fitting(axes_of(filters)), key=lambda each: each[:2]):
        own = task.choices.get("model")
        yield task.name, algorithm.name, sorted((model.name for *_, model in found), key=lambda name: name != own)


def matching_recipes(filters: Mapping[str, str]) -> Iterator[Entry]:
    """Yield the recipes with the options, the kind of task and the status that the filters name."""
    tasks = {each.name: each for each in catalogue("task")}
    papers, results = (recipes(), stored()) if "status" in filters else ({}, {})
    for each in catalogue("experiment"):
        chosen = choices(each, tasks)
        task = tasks.get(chosen.get("task", ""))
        if any(chosen.get(axis) != filters[axis] for axis in AXES if axis in filters):
            continue
        if "kind" in filters and (task is None or task.attributes.get("kind") != filters["kind"]):
            continue
        paper = papers.get(each.name)
        wanted = filters.get("status")
        if wanted and (paper is None or status_of(each.name, paper, results.get(each.name)) != wanted):
            continue
        yield each


def choices(recipe: Entry, tasks: Mapping[str, Entry]) -> dict[str, str]:
    """Return the task, model and algorithm of a recipe; those that it does not name are its task's own."""
    chosen = recipe.choices
    task = tasks.get(chosen.get("task", ""))
    both = {**(task.choices if task else {}), **chosen}
    return {axis: both[axis] for axis in AXES if axis in both}


def heading(entry: Entry) -> str:
    """Return what an option is for: the kind of its tasks, what it reads."""
    facts = entry.attributes
    if entry.group == "task":
        return f"{facts.get('kind')}, {facts.get('modality')}"
    if entry.group == "model" and "modalities" in facts:
        return f"{facts['role']} of {', '.join(facts['modalities'])}"
    if entry.group == "algorithm" and "kinds" in facts:
        return ", ".join(facts["kinds"])
    return "your own" if entry.group != "experiment" else entry.name.rpartition("/")[0]


def by_heading(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return the options by what they are for."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(heading(entry), []).append(entry)
    return found


def print_overview() -> None:
    """Print the names of all options, by what they are for."""
    width = columns()
    for plural, group in LISTS.items():
        if group == "experiment":  # recipes are only counted: reading their files would take half of the time
            folders = Counter(name.rpartition("/")[0] or "others" for name, _ in options(group))
            count, indent = folders.total(), "  "
            lines = [", ".join(f"{folder} {number}" for folder, number in sorted(folders.items()))]
        else:
            entries = by_heading(catalogue(group))
            count, indent = sum(map(len, entries.values())), "      "
            lines = [f"{title}: {', '.join(each.name for each in found)}" for title, found in entries.items()]
        print(f"{plural} ({count})")
        for line in map(printable, lines):
            print(textwrap.fill(line, width, initial_indent="  ", subsequent_indent=indent, break_on_hyphens=False))
        print()
    print(_HINTS)


def print_options(entries: Iterable[Entry]) -> None:
    """Print a line for each option, by what they are for."""
    groups = by_heading(entries)
    width = max((len(each.name) for found in groups.values() for each in found), default=0)
    for title, found in groups.items():
        print(title)
        print_columns([(f"  {each.name:<{width}}", each.line) for each in found])


def print_columns(rows: list[tuple[str, ...]]) -> None:
    """Print rows of text in columns. In a terminal, the last column is wrapped; elsewhere each row is one line."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(len(rows[0]) - 1)] if rows else []
    left = sum(widths) + 2 * len(widths)
    for cells in rows:
        start = printable("".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=False)))
        lines = [printable(cells[-1])]
        if sys.stdout.isatty():
            lines = textwrap.wrap(lines[0], max(columns() - left, 20)) or lines
        print(f"{start}{lines[0]}".rstrip())
        for line in lines[1:]:
            print(f"{'':<{left}}{line}")


def print_recipes(entries: Iterable[Entry], details: bool) -> None:
    """Print a line for each recipe: its status and its first published number. ``details``: all numbers."""
    papers, results = recipes(), stored()
    rows: list[tuple[str, ...]] = []
    for each in entries:
        paper = papers.get(each.name)
        if paper is None:
            rows.append((each.name, "", each.line))
            continue
        result = results.get(each.name)
        numbers = [claim["text"] for claim in claims(paper, result)]
        more = f"   and {len(numbers) - 1} more" if len(numbers) > 1 and not details else ""
        rows.append((each.name, status_of(each.name, paper, result), numbers[0] + more))
        rows += [("", "", number) for number in (numbers[1:] if details else ())]
    print_columns(rows)


def claims(paper: Any, result: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield each published number of a paper with our result and the verdict."""
    found = {finding.claim.id: finding for finding in findings(paper, result)} if result else {}
    for claim in paper.claims:
        facts = {"metric": metric_of(claim), "published": published(paper, claim)}
        finding = found.get(claim.id)
        if finding is None:
            yield {**facts, "ours": None, "verdict": None, "text": "{metric}: {published}".format(**facts)}
            continue
        _, _, ours, _, _, verdict = row(paper, finding)
        verdicts = [verdict] if verdict else []
        verdicts += [] if claim.bar is None else [f"bar {claim.bar:g} {reached(finding)}"]
        text = "{metric}: {published}, ours {ours}: {words}".format(**facts, ours=ours, words=", ".join(verdicts))
        yield {**facts, "ours": ours, "verdict": verdict or None, "text": text}


def as_json(group: str, entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    """Yield the facts of each option of a group as plain values."""
    tasks = {each.name: each for each in catalogue("task")}
    papers, results = (recipes(), stored()) if group == "experiment" else ({}, {})
    shown = {"task": ("kind", "modality"), "model": ("role", "modalities"), "algorithm": ("kinds", "roles")}
    for each in entries:
        facts: dict[str, Any] = {"name": each.name, "about": each.line, "file": str(each.path)}
        facts |= {name: each.attributes[name] for name in shown.get(each.group, ()) if name in each.attributes}
        facts |= choices(each, tasks) if each.group == "experiment" else each.choices
        if paper := papers.get(each.name):
            result = results.get(each.name)
            facts |= {"title": paper.title, "arxiv": paper.arxiv, "status": status_of(each.name, paper, result)}
            facts["claims"] = list(claims(paper, result))
        yield facts
