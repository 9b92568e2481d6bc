"""Reproductions: one JSON record each under outputs/reproduced, and the tables made of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import yaml

from metarun import strict_json
from metarun.config.catalogue import Entry, catalogue
from metarun.config.paper import COUNTED, SEEDS, Claim, Finding, Paper, worst
from metarun.config.paths import conf_directory, records_directory
from metarun.errors import UserError
from metarun.escape import for_markdown
from metarun.tracking.files import atomic_write
from metarun.tracking.history import substance
from metarun.tracking.rundir import RunDirectory
from metarun.untrusted import read_json

log = logging.getLogger("metarun")

RESULTS = Path("outputs/reproduced")
"""Where ``metarun reproduce`` writes its records."""
Standing = Literal["sound", "stale", "not committed", "altered", "untraced"]
"""What a record is worth: ``sound``; of a recipe that has changed since; of code or a recipe that is not committed;
changed by hand after it was written; or of before records could be traced to what made them."""


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
        "claims": {
            finding.claim.id: {
                "metric": finding.claim.metric,
                "step": finding.claim.step,
                "seeds": {str(seed): {"mean": m, "ci95": half} for seed, (m, half) in finding.seeds.items()},
            }
            for finding in paper.findings(summaries)
        },
        "iterations": first["iterations"],
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
    result = strict_json.finite(result)  # as it is read again
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


def standing(name: str, result: Mapping[str, Any]) -> Standing:
    """Whether the record of the recipe ``name`` still says what a run of it would be, and can be traced."""
    if "digest" not in result:
        return "untraced"
    if result["digest"] != sha256({key: value for key, value in result.items() if key != "digest"}):
        return "altered"
    if not result["clean"]:
        return "not committed"
    now = {entry.name: entry.path.read_text() for entry in _lineage(name)}
    return "sound" if _asked(now) == _asked(result["recipe"]) else "stale"


def _asked(texts: Mapping[str, str]) -> dict[str, Any]:
    """What recipes ask for: their keys, without comments and without the paper that they are compared with."""
    read = {name: yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) for name, text in texts.items()}
    return {name: {key: value for key, value in keys.items() if key != "paper"} for name, keys in read.items()}


def findings(paper: Paper, result: Mapping[str, Any]) -> list[Finding]:
    """What a record's runs found for each claim of ``paper`` that they were tested for."""
    short = paper.is_short({result["iterations"]})
    found = result["claims"]
    return [
        Finding(
            claim,
            {int(s): strict_json.numbers((each["mean"], each["ci95"])) for s, each in found[claim.id]["seeds"].items()},
            short,
        )
        for claim in paper.claims
        if claim.id in found
    ]


def counts(name: str, paper: Paper, result: Mapping[str, Any]) -> bool:
    """Whether a record is a pass that counts: sound, all of its values reached, and all of them read in a source."""
    found = findings(paper, result)
    read = all(paper.source(finding.claim) in COUNTED for finding in found if finding.verdict)
    return worst(found) == "pass" and read and standing(name, result) == "sound"


def path_of(folder: Path, name: str) -> Path:
    """The file of a recipe's reproduction."""
    return folder / f"{name.replace('/', '--')}.json"


def store(folder: Path, result: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, result["id"])
    atomic_write(path, (strict_json.dumps(result, indent=1) + "\n").encode())
    return path


def stored(*folders: Path) -> dict[str, dict[str, Any]]:
    """The records by recipe, those of a later folder over those of an earlier one.

    Without ``folders``: those that metarun ships, and those under the current directory. A damaged file is named in a
    warning and left out.
    """
    papers, found = recipes(), {}
    for folder in folders or (records_directory(), RESULTS):
        for path in sorted(folder.glob("*.json")):
            try:
                result = read_json(path)
                name = str(result["id"])
                if name in papers:  # all that is read of a record
                    worst(findings(papers[name], result))
                    standing(name, result)
                found[name] = result
            except (UserError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
                log.warning("left out: %s is damaged: no record of a reproduction", path)
    return found


def number(value: float | None) -> str:
    """Four significant digits; null is what was not finite."""
    return "not finite" if value is None or not isfinite(value) else f"{value:.4g}"


def published(paper: Paper, claim: Claim) -> str:
    """A claim's value as it may be printed: with where it was read, one from memory never as the paper's."""
    if claim.value is None:
        return "curves alone"
    value = number(claim.value) + ("" if claim.ci95 is None else f" ± {number(claim.ci95)}")
    return {
        "paper": value,
        "code": f"{value} (authors' code)",
        "rerun": f"{value} (re-run by {paper.by})",
        "quoted": f"{value} (quoted)",
        "recalled": f"({value}, from memory)",
    }[paper.source(claim)]


def metric_of(claim: Claim) -> str:
    """A claim's metric, with its place in the adaptation curve and its unit."""
    metric = claim.metric if claim.step is None else f"{claim.metric} after {claim.step}"
    return metric + (", %" if claim.percent else "")


def row(paper: Paper, finding: Finding) -> list[str]:
    """metric, published, ours, worst seed, bar, verdict: the cells of what was found for a claim."""
    seeds = len(finding.seeds)
    worst_seed = f"{number(finding.seeds[finding.worst_seed][0])} (seed {finding.worst_seed})" if seeds > 1 else ""
    ours = f"{number(finding.ours)} ± {number(finding.ci95)}, {seeds} seed{'s' * (seeds > 1)}"
    bar = "" if finding.claim.bar is None else f"{number(finding.claim.bar)}: {reached(finding)}"
    return [metric_of(finding.claim), published(paper, finding.claim), ours, worst_seed, bar, finding.verdict or ""]


def reached(finding: Finding) -> str:
    return "reached" if finding.bar_reached else "not reached"


def headline(papers: Mapping[str, Paper], results: Mapping[str, Mapping[str, Any]]) -> str:
    """How many recipes were run, and how many of them are passes that count."""
    known = {name: result for name, result in results.items() if name in papers}
    sound = [name for name, result in known.items() if standing(name, result) == "sound"]
    passed = [name for name in sound if counts(name, papers[name], known[name])]
    return (
        f"{len(sound)} of {len(papers)} recipes have a record that can be traced; {len(passed)} of them pass: over at "
        f"least {SEEDS} seeds, against values read in the paper, its authors' code or a named re-run."
    )


def markdown(papers: Mapping[str, Paper], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of outputs/reproduced/README.md: each recipe that was run, and how many were not."""
    lines = [headline(papers, results), ""]
    lines += ["| recipe | metric | published | ours | worst seed | our own bar | verdict | record |", "|---" * 8 + "|"]
    for name, paper in papers.items():
        if name not in results:
            continue
        for position, finding in enumerate(findings(paper, results[name])):
            arxiv = for_markdown(paper.arxiv)
            shown = f"`{name}` ([{arxiv}](https://arxiv.org/abs/{arxiv}), {for_markdown(paper.where)})"
            worth = standing(name, results[name])
            cells: Sequence[str] = [shown, *map(for_markdown, row(paper, finding)), for_markdown(worth)]
            if position:
                cells = ["", *cells[1:-1], ""]
            lines.append("| " + " | ".join(cells) + " |")
    waiting = [paper for name, paper in papers.items() if name not in results]
    numbers = sum(len(paper.claims) for paper in waiting)
    lines += ["", f"Not run: {len(waiting)} recipes, for {numbers} numbers; `metarun list experiments` has them all."]
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- written by scripts/reproductions.py -->\n", "<!-- end of what is written -->\n"


def generated_in(text: str) -> str:
    """The generated part of a Markdown text."""
    return text.split(BEGIN)[1].split(END)[0]


def with_generated(text: str, part: str) -> str:
    """A Markdown text with its generated part replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + part + END + rest.split(END)[1]
