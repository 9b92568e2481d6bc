"""Reproductions: one JSON file each under outputs/reproduced, and the tables made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.config.catalogue import Entry, catalogue
from metarun.config.paths import conf_directory
from metarun.errors import UserError
from metarun.reports.paper import Claim, Paper
from metarun.tracking.history import substance
from metarun.tracking.rundir import RunDirectory, atomic_write

RESULTS = Path("outputs/reproduced")


def recipes() -> dict[str, Paper]:
    """The papers of all recipes that compare with one, by the recipe's name."""
    entries = {e.name: e for e in catalogue("experiment") if (e.content.get("paper") or {}).get("claims")}
    return {name: Paper.of(entry.section["paper"]) for name, entry in entries.items()}


def record(name: str, config: Mapping[str, Any], runs: Mapping[int, RunDirectory]) -> dict[str, Any]:
    """The record of a reproduction, from its finished ``runs`` by seed, each of the configuration ``config``.

    A record can be traced: it holds the resolved configuration with its hash, the text of the recipe, each run's
    commit and whether all of them ran on committed code (``clean``), and a ``digest`` of all that.
    """
    paper = Paper.of(config["paper"])
    wanted = substance(config)
    for seed, run in runs.items():
        if substance(run.config()) != wanted:
            raise UserError(f"{run.path} (seed {seed}) is not a run of {name}: its configuration is another one")
    summaries: dict[int, dict[str, Any]] = {seed: run.summary() or {} for seed, run in runs.items()}
    metas = {seed: run.meta() for seed, run in runs.items()}
    last = metas[max(metas)]
    first = summaries[min(summaries)]
    result = {
        "id": name,
        "command": f"metarun reproduce {name} --seeds {len(runs)}",
        "clean": all(_is_clean(meta.get("git")) for meta in metas.values()) and _is_shipped(name),
        "title": paper.title,
        "arxiv": paper.arxiv,
        "where": paper.where,
        "verified": paper.verified,
        "open": paper.open,
        **paper.judge(summaries),
        "iterations": first["iterations"],
        "paper_iterations": paper.iterations,
        "protocol": first["protocol"],
        "train_s": {str(seed): summary["wall_s"] for seed, summary in summaries.items()},
        "commits": {str(seed): (meta.get("git") or {}).get("commit") for seed, meta in metas.items()},
        "versions": {"python": last["python"], **last["versions"]},
        "device": last["device"],
        "threads": last["threads"],
        "cpu": last["host"]["cpu"],
        "finished": last["end"],
        "recipe": {entry.name: entry.path.read_text() for entry in _lineage(name)},
        "configuration": wanted,
        "configuration_sha256": sha256(wanted),
    }
    return {**result, "digest": sha256(result)}


def sha256(content: Mapping[str, Any]) -> str:
    """The hash of plain values: of their JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_clean(git: Mapping[str, Any] | None) -> bool:
    return bool(git and git["commit"] and not git["dirty"])


def _is_shipped(name: str) -> bool:
    return all(entry.path.is_relative_to(conf_directory()) for entry in _lineage(name))


def _lineage(name: str) -> Iterator[Entry]:
    """The recipe, and the recipes that it builds on."""
    entries = {entry.name: entry for entry in catalogue("experiment")}

    def walk(entry: Entry) -> Iterator[Entry]:
        yield entry
        for default in entry.content.get("defaults") or []:
            if isinstance(default, str) and (parent := entries.get(default.removeprefix("/experiment/"))):
                yield from walk(parent)

    return walk(entries[name])


def path_of(folder: Path, name: str) -> Path:
    """The file of a recipe's reproduction."""
    return folder / f"{name.replace('/', '--')}.json"


def store(folder: Path, result: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, result["id"])
    atomic_write(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """What was reproduced, by recipe; raises :class:`~metarun.errors.UserError` for a damaged file."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            found[str(result["id"])] = result
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: no reproduction") from None
    return found


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def published(paper: Paper, claim: Claim) -> str:
    """A claim's value as it may be printed: one from memory never as the paper's."""
    if claim.value is None:
        return "curves alone"
    interval = "" if claim.ci95 is None else f" ± {number(claim.ci95)}"
    value = number(claim.value) + interval
    source = claim.verified or paper.verified
    return {"recalled": f"({value}, from memory)", "quoted": f"{value} (quoted)"}.get(source, value)


def row(paper: Paper, claim: Claim, result: Mapping[str, Any] | None) -> list[str]:
    """metric, paper, ours, worst seed, verdict: the cells of a claim that ``result`` (null: not run) judged."""
    metric = claim.metric if claim.step is None else f"{claim.metric} after {claim.step}"
    metric += ", %" if claim.percent else ""
    found = (result or {}).get("claims", {}).get(claim.id)
    if found is None:
        return [metric, published(paper, claim), "", "", "not run"]
    seeds = len(found["seeds"])
    worst = f"{number(found['worst'])} (seed {found['worst_seed']})" if seeds > 1 else ""
    ours = f"{number(found['ours'])} ± {number(found['ci95'])}, {seeds} seed{'s' * (seeds > 1)}"
    verdict = found["verdict"] + (f" (asked {number(found['bar'])})" if found["because"] else "")
    return [metric, published(paper, claim), ours, worst, verdict]


def markdown(papers: Mapping[str, Paper], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The README's table: each recipe that was run, and how many were not."""
    lines = ["| recipe | metric | paper | ours | worst seed | verdict |", "|---|---|---|---|---|---|"]
    for name, paper in papers.items():
        if name not in results:
            continue
        for position, claim in enumerate(paper.claims):
            shown = f"`{name}` ([{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}), {paper.where})"
            cells: Sequence[str] = [shown if position == 0 else "", *row(paper, claim, results[name])]
            lines.append("| " + " | ".join(cells) + " |")
    waiting = [paper for name, paper in papers.items() if name not in results]
    numbers = sum(len(paper.claims) for paper in waiting)
    lines += ["", f"Not run: {len(waiting)} recipes, for {numbers} numbers; `metarun list experiments` has them all."]
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- reproductions: written by scripts/reproductions.py -->\n", "<!-- end of reproductions -->\n"


def table_in(text: str) -> str:
    """The table of reproductions in a Markdown text."""
    return text.split(BEGIN)[1].split(END)[0]


def with_table(text: str, table: str) -> str:
    """A Markdown text with its table of reproductions replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table + END + rest.split(END)[1]
