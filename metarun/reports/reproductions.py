"""Records of reproduced papers, one JSON file each under outputs/reproduced, and the tables made from them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import yaml

from metarun import strict_json
from metarun.config.catalogue import Entry, catalogue, entry
from metarun.config.locations import relative
from metarun.config.paper import COUNTED, FIRST_HAND, SEEDS, Claim, Finding, Paper, Source, worst
from metarun.config.paths import conf_directory, records_directory
from metarun.errors import UserError
from metarun.escape import for_markdown
from metarun.reports.status import Status
from metarun.runs.history import experiment_identity
from metarun.tracking.files import atomic_write
from metarun.tracking.rundir import RunDirectory
from metarun.untrusted import read_json

log = logging.getLogger("metarun")

RESULTS = Path("outputs/reproduced")
"""Folder to which ``metarun reproduce`` writes its records."""
Standing = Literal["sound", "stale", "not committed", "altered", "untraced"]
"""Validity of a record.

``sound``: traceable and up to date. ``stale``: the recipe has changed since. ``not committed``: the code or the recipe
was not committed. ``altered``: edited after it was written. ``untraced``: written before records held a digest.
"""


def recipes() -> dict[str, Paper]:
    """Return the paper of each recipe that has claims to compare with, by the name of the recipe."""
    entries = {e.name: e for e in catalogue("experiment") if (e.content.get("paper") or {}).get("claims")}
    return {name: Paper.of(entry.section["paper"]) for name, entry in entries.items()}


def stated_time(name: str) -> str:
    """Return how long a recipe takes according to its first lines; an empty string if they do not say."""
    found = entry("experiment", name)
    text = found.path.read_text(encoding="utf-8") if found else ""
    command = rf"^#\s+metarun (?:reproduce |experiment=){re.escape(name)}"
    line = re.search(rf"{command}(?:  +|\n#  +)(.+)$", text, re.MULTILINE)  # in the next line if it is long
    return line[1].strip() if line else ""


def record(name: str, config: Mapping[str, Any], runs: Mapping[int, RunDirectory]) -> dict[str, Any]:
    """Make the record of a reproduction.

    A record is traceable. It holds the resolved configuration with its hash, the text of the recipe, the commits that
    each run was started and resumed at, whether all were clean (``clean``), and a ``digest`` of all these.

    Args:
        name: Name of the recipe.
        config: Resolved configuration of the recipe.
        runs: Finished runs by seed.

    Raises:
        UserError: A run has another configuration than ``config``.
    """
    paper = Paper.of(config["paper"])
    wanted = experiment_identity(config)
    kept = relative(wanted)  # it says nothing of where the project lies on this machine
    for seed, run in runs.items():
        if experiment_identity(run.config()) != wanted:
            raise UserError(f"{run.path} (seed {seed}) is not a run of {name}: its configuration differs")
    summaries: dict[int, dict[str, Any]] = {seed: run.summary() or {} for seed, run in runs.items()}
    metas = {seed: run.meta() for seed, run in runs.items()}
    resumed = {seed: meta.get("resumed", []) for seed, meta in metas.items()}
    states = [part.get("git") for seed, meta in metas.items() for part in (meta, *resumed[seed])]
    last = metas[max(metas)]
    first = summaries[min(summaries)]
    result = {
        "id": name,
        "command": f"metarun reproduce {name} --seeds {len(runs)}",
        "clean": all(map(_is_clean, states)) and _is_shipped(name),
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
        "cpu_s": {str(seed): summary.get("cpu_s") for seed, summary in summaries.items()},
        "commits": {str(seed): (meta.get("git") or {}).get("commit") for seed, meta in metas.items()},
        "resumed_at": {
            str(seed): [[part.get("iteration"), (part.get("git") or {}).get("commit")] for part in parts]
            for seed, parts in resumed.items()
            if parts
        },
        "versions": {"python": last["python"], **last["versions"]},
        "device": last["device"],
        "threads": last["threads"],
        "cpu": last["host"]["cpu"],
        "finished": last["end"],
        "recipe": {entry.name: entry.path.read_text() for entry in _lineage(name)},
        "configuration": kept,
        "configuration_sha256": sha256(kept),
    }
    result = strict_json.finite(result)  # in the form in which it will be read again
    return {**result, "digest": sha256(result)}


def sha256(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the JSON of plain values with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_clean(git: Mapping[str, Any] | None) -> bool:
    return bool(git and git["commit"] and not git["dirty"])


def _is_shipped(name: str) -> bool:
    return all(entry.path.is_relative_to(conf_directory()) for entry in _lineage(name))


def _lineage(name: str) -> Iterator[Entry]:
    """Yield the recipe and the recipes in its defaults."""
    if found := entry("experiment", name):
        yield found
        for default in found.content.get("defaults") or []:
            if isinstance(default, str) and default != "_self_":
                yield from _lineage(default.removeprefix("/experiment/"))


def standing(name: str, result: Mapping[str, Any]) -> Standing:
    """Return whether the record of the recipe ``name`` is traceable and up to date (see :data:`Standing`)."""
    if "digest" not in result:
        return "untraced"
    if result["digest"] != sha256({key: value for key, value in result.items() if key != "digest"}):
        return "altered"
    if not result["clean"]:
        return "not committed"
    now = {entry.name: entry.path.read_text() for entry in _lineage(name)}
    return "sound" if _recipe_keys(now) == _recipe_keys(result["recipe"]) else "stale"


def _recipe_keys(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse recipes and drop their comments and their ``paper`` sections."""
    parsed = {
        name: yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) for name, text in texts.items()
    }
    return {name: {key: value for key, value in keys.items() if key != "paper"} for name, keys in parsed.items()}


def findings(paper: Paper, result: Mapping[str, Any]) -> list[Finding]:
    """Return the findings of a record for each claim of ``paper`` that its runs measured."""
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


def counts(name: str, paper: Paper, result: Mapping[str, Any], sources: Sequence[Source] = COUNTED) -> bool:
    """Return whether a record counts as a pass.

    It must be sound, reach all values of the paper, and at least one of them must have been read in one of ``sources``.
    """
    found = findings(paper, result)
    read = any(paper.source(finding.claim) in sources for finding in found if finding.verdict)
    return worst(found) == "pass" and read and standing(name, result) == "sound"


def status_of(name: str, paper: Paper, result: Mapping[str, Any] | None) -> Status:
    """Return the status of a recipe from its record; ``None`` if there is none."""
    if result is None:
        return "not-run"
    match standing(name, result):
        case "sound":
            pass
        case "not committed":
            return "uncommitted"
        case invalid:
            return invalid
    match worst(findings(paper, result)):
        case "pass":
            return "passed" if counts(name, paper, result) else "recalled"
        case "consistent":
            return "consistent"
        case "miss":
            return "missed"
        case "inconclusive":
            return "inconclusive"
        case "budget not reached":
            return "short"
    return "no-value"


def path_of(folder: Path, name: str) -> Path:
    """Return the path of the record of a recipe."""
    return folder / f"{name.replace('/', '--')}.json"


def store(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write a record and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, result["id"])
    atomic_write(path, (strict_json.dumps(result, indent=1) + "\n").encode())
    return path


def stored(*folders: Path) -> dict[str, dict[str, Any]]:
    """Load records by the name of their recipe. Records in later folders replace those in earlier ones.

    Damaged files are skipped with a warning.

    Args:
        folders: Folders to read. Without any: the records shipped with metarun, then those under the current directory.
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
    """Format a value with four significant digits. ``None`` stands for a value that was not finite."""
    return "not finite" if value is None or not isfinite(value) else f"{value:.4g}"


def published(paper: Paper, claim: Claim) -> str:
    """Format the value of a claim with its source. A value from memory is never shown as the paper's."""
    if claim.value is None:
        return "nothing: our own baseline" if paper.source(claim) == "own" else "curves alone"
    value = number(claim.value) + ("" if claim.ci95 is None else f" ± {number(claim.ci95)}")
    return {
        "paper": value,
        "code": f"{value} (authors' code)",
        "rerun": f"{value} (re-run by {paper.by})",
        "quoted": f"{value} (quoted)",
        "recalled": f"({value}, from memory)",
    }[paper.source(claim)]


def metric_of(claim: Claim) -> str:
    """Format the metric of a claim with its adaptation step and its unit."""
    metric = claim.metric if claim.step is None else f"{claim.metric} after {claim.step}"
    return metric + (", %" if claim.percent else "")


def row(paper: Paper, finding: Finding) -> list[str]:
    """Return the cells of a finding: metric, published, ours, worst seed, bar, verdict."""
    seeds = len(finding.seeds)
    worst_seed = f"{number(finding.seeds[finding.worst_seed][0])} (seed {finding.worst_seed})" if seeds > 1 else ""
    spread = f" ± {number(finding.ci95)}" if isfinite(finding.ci95) else ""
    ours = f"{number(finding.ours)}{spread}, {seeds} seed{'s' * (seeds > 1)}"
    bar = "" if finding.claim.bar is None else f"{number(finding.claim.bar)}: {reached(finding)}"
    return [metric_of(finding.claim), published(paper, finding.claim), ours, worst_seed, bar, finding.verdict or ""]


def reached(finding: Finding) -> str:
    """Say whether a finding reaches our own bar."""
    return "reached" if finding.bar_reached else "not reached"


def headline(papers: Mapping[str, Paper], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence with the numbers of recipes that have a sound record and that pass."""
    known = {name: result for name, result in results.items() if name in papers}
    sound = [name for name, result in known.items() if standing(name, result) == "sound"]
    passed = [name for name in sound if counts(name, papers[name], known[name])]
    first_hand = sum(counts(name, papers[name], known[name], FIRST_HAND) for name in passed)
    controls = sum(not known[name]["iterations"] for name in passed)
    return (
        f"{len(sound)} of {len(papers)} recipes have a record that can be traced; {len(passed)} of them pass over at "
        f"least {SEEDS} seeds: {first_hand} against values read in the paper, its authors' code or a named re-run, "
        f"{len(passed) - first_hand} against values that others quote. Of these, {controls} are controls, which are "
        f"not meta-trained. Values from memory do not count."
    )


def markdown(papers: Mapping[str, Paper], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of outputs/reproduced/README.md with all recipes that were run, and the number that were not."""
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
    """Return the generated part of a Markdown text."""
    return text.split(BEGIN)[1].split(END)[0]


def with_generated(text: str, part: str) -> str:
    """Return a Markdown text with its generated part replaced by ``part``."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + part + END + rest.split(END)[1]
