"""``metarun list [tasks|models|algorithms|experiments]``: all options, and which of them can be combined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarun.config.catalogue import Entry, catalogue, default_option
from metarun.config.check import misfit
from metarun.config.paper import Paper
from metarun.errors import UserError, nearest
from metarun.escape import printable
from metarun.reports.reproductions import findings, metric_of, published, reached, recipes, row, standing, stored
from metarun.tracking.console import set_up_logging

_GROUPS = {"tasks": "task", "models": "model", "algorithms": "algorithm", "experiments": "experiment"}


def run(words: list[str]) -> int:
    """Run the command: print one group, or all groups and the table of compatible options."""
    if len(words) > 1:
        raise UserError(f"list takes one word: {', '.join(_GROUPS)}")
    wanted = words[0] if words else None
    if wanted is not None and wanted not in _GROUPS:
        raise UserError(f"unknown list '{wanted}'{nearest(wanted, _GROUPS)}   lists: {', '.join(_GROUPS)}")
    set_up_logging()
    entries = {plural: list(catalogue(group)) for plural, group in _GROUPS.items()}
    for plural in [wanted] if wanted else entries:
        print(plural)
        width = max((len(e.name) for e in entries[plural]), default=0)
        papers, results = (recipes(), stored()) if plural == "experiments" else ({}, {})
        for entry in entries[plural]:
            print(printable(f"  {entry.name:<{width}}  {_facts(entry)}{entry.line}"))
            for line in _published(papers.get(entry.name), results.get(entry.name)):
                print(printable(f"  {'':<{width}}    {line}"))
        print()
    if wanted is None:
        print("task x algorithm: the models that fit, the task's own first")
        for row in fit_table(entries["tasks"], entries["models"], entries["algorithms"]):
            print("  " + row)
    return 0


def fit_table(tasks: list[Entry], models: list[Entry], algorithms: list[Entry]) -> list[str]:
    """Return one line for every compatible pair of task and algorithm, with the models that fit."""
    lines = []
    names = max(len(t.name) for t in tasks)
    width = max(len(a.name) for a in algorithms)
    for task in tasks:
        for algorithm in algorithms:
            if misfit(task.attributes, None, algorithm.attributes):
                continue
            fitting = [m.name for m in models if not misfit(task.attributes, m.attributes, algorithm.attributes)]
            if fitting:
                own = default_option(task, "model")
                fitting.sort(key=lambda name, own=own: name != own)  # type: ignore[misc]
                lines.append(f"{task.name:<{names}}  {algorithm.name:<{width}}  {', '.join(fitting)}")
    return lines


def _published(paper: Paper | None, result: Mapping[str, Any] | None) -> list[str]:
    """Return a recipe's lines: each published number, our result, the verdict, and the status of the record."""
    if paper is None:
        return []
    found = {finding.claim.id: finding for finding in findings(paper, result)} if result else {}
    status = standing(result["id"], result) if result else "sound"
    lines = []
    for claim in paper.claims:
        line = f"{metric_of(claim)}: {published(paper, claim)}, "
        if claim.id not in found:
            lines.append(line + "not run")
            continue
        _, _, ours, _, _, verdict = row(paper, found[claim.id])
        verdicts = [verdict] if verdict else []
        verdicts += [] if claim.bar is None else [f"bar {claim.bar:g} {reached(found[claim.id])}"]
        lines.append(line + f"ours {ours}: {', '.join(verdicts)}" + (f" ({status})" if status != "sound" else ""))
    return lines


def _facts(entry: Entry) -> str:
    facts = entry.attributes
    if entry.group == "task":
        return f"[{facts.get('kind')}, {facts.get('modality')}] "
    if entry.group == "model" and "modalities" in facts:
        return f"[{', '.join(facts['modalities'])} -> {facts['role']}] "
    if entry.group == "algorithm" and "kinds" in facts:
        return f"[{', '.join(facts['kinds'])}] "
    return ""
