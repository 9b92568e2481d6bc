"""Recipes that compare with a paper: their numbers and protocols are those of the catalogue, nothing of which is left
out in silence, and what the READMEs say is what the stored records make of them."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from metarun.config.build import build, construct
from metarun.config.catalogue import catalogue
from metarun.config.check import check
from metarun.config.compose import compose, named, resolve, unresolved
from metarun.config.paper import FIRST_HAND, Claim, worst
from metarun.moved import updated
from metarun.reports.reproductions import (
    counts,
    findings,
    generated_in,
    headline,
    markdown,
    recipes,
    record,
    sha256,
    standing,
    stated_time,
    stored,
)
from metarun.runs.history import experiment_identity
from metarun.tasks.vision import omniglot
from tests.histories import random_histories
from tests.slow import slow_but

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
RECORDS = ROOT / "outputs" / "reproduced"


def read(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


EXTRACT: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in read(HERE / "catalogue.yaml")}
CATALOGUE = {**EXTRACT, **{entry["id"]: entry for entry in read(HERE / "reruns.yaml")}}
NOT_COVERED: dict[str, list[str]] = read(HERE / "not_covered.yaml")
PAPERS = recipes()
SOURCES = {
    "paper": "paper",
    "authors' code": "code",
    "clean re-run": "rerun",
    "quoted by a third party": "quoted",
    "unverified": "recalled",
}
PUBLISHED = {
    "way": "task.way", "shot": "task.shot", "query": "task.query",
    "train_way": "algorithm.train_way", "train_query": "algorithm.train_query",
    "train_shots": "algorithm.train_shot", "trained_shots": "algorithm.train_shot", "k_train": "task.shot",
    "meta_batch": "runner.meta_batch", "task_mb_size": "runner.meta_batch", "tasks_per_update": "runner.meta_batch",
    "inner_lr": "algorithm.inner_lr", "outer_lr": "algorithm.outer_lr", "lr_vae": "algorithm.vae_lr",
    "inner_steps_train": "algorithm.inner_steps", "inner_iters": "algorithm.inner_steps",
    "n_steps": "algorithm.inner_steps", "opt_steps": "algorithm.inner_steps", "unroll": "algorithm.outer.unroll",
    "inner_steps_test": "algorithm.test_steps", "eval_inner_iters": "algorithm.test_steps",
    "test_steps": "algorithm.test_steps", "inner_batch": "algorithm.inner_batch",
    "eval_inner_batch": "algorithm.test_batch", "context_params": "algorithm.adapts.size",
    "lam": "algorithm.loss.strength", "cg_steps": "algorithm.outer.iterations", "cg_damping": "algorithm.outer.damping",
    "filters": "model.width",
}  # fmt: skip
"""What the catalogue says of a protocol in plain numbers, and the key that says it here."""
BUDGETS = ("iterations", "meta_iters", "meta_steps", "episodes")


EXPERIMENTS = {entry.name: entry for entry in catalogue("experiment")}


def base_of(name: str) -> str | None:
    """The base recipe that a recipe only adds values to; ``None`` if it chooses options itself."""
    (*others, base) = EXPERIMENTS[name].content.get("defaults") or [None]
    return base.removeprefix("/experiment/") if not others and isinstance(base, str) else None


@cache
def composed(name: str) -> dict[str, Any]:
    """The configuration of a recipe. Recipes of one base are composed once: Hydra takes a quarter of a second."""
    if (base := base_of(name)) is None:
        return compose([f"experiment={name}"]).config
    values = {key: value for key, value in EXPERIMENTS[name].content.items() if key != "defaults"}
    return resolve(OmegaConf.merge(of_base(base), values))  # type: ignore[arg-type]


@cache
def of_base(name: str) -> DictConfig:
    return unresolved([f"experiment={name}"])[0]


BASES = {base_of(name): name for name in EXPERIMENTS}


@pytest.mark.parametrize(
    "name", slow_but([name for base, name in [*BASES.items()][::8] if base], filter(base_of, EXPERIMENTS))
)
def test_a_recipe_is_composed_by_hydra_as_here(name: str) -> None:
    assert composed(name) == compose([f"experiment={name}"]).config


def test_every_experiment_composes_and_fits() -> None:
    for name, entry in EXPERIMENTS.items():
        config = composed(name)
        assert config["paper"] == entry.section.get("paper"), name
        check({**config, "name": config["name"] or "x"})
    assert set(PAPERS) <= set(EXPERIMENTS)


def value_at(config: Mapping[str, Any], key: str) -> Any:
    return reduce(
        lambda section, word: section.get(word) if isinstance(section, Mapping) else None, key.split("."), config
    )


def differing(claim: Claim, entry: dict[str, Any], config: dict[str, Any]) -> set[str]:
    """The catalogue's names of what a claim's recipe does otherwise, of what both say in plain numbers."""
    said = {**(entry.get("hyperparameters") or {}), **{key: entry.get(key) for key in ("way", "shot", "query")}}
    ours = {name: value_at(config, key) for name, key in PUBLISHED.items()}
    if variant := re.search(r"_(\d+)(way|shot)$", claim.metric):
        assert int(variant[1]) in config["task"][f"test_{variant[2]}s"], claim.id
        ours[variant[2]] = int(variant[1])
    if claim.step is not None:
        ours["inner_steps_test"] = claim.step
    if "inner_loss_scaling" in said and ours["inner_lr"]:  # of a sum over the classes
        ours["inner_lr"] /= config["task"]["way"]
    found = {
        name for name, value in ours.items()
        if type(said.get(name)) in (int, float) and value is not None and value != pytest.approx(said[name])
    }  # fmt: skip
    if type(entry.get("test_episodes")) is int and config["runner"]["test_episodes"] < entry["test_episodes"]:
        found.add("test_episodes")  # more of them are only more precise
    return found


def test_every_claim_is_the_catalogues() -> None:
    walked = set()
    for name, paper in PAPERS.items():
        if paper.verified == "own":
            continue
        config, different = composed(name), set()
        for claim in paper.claims:
            entry = CATALOGUE[claim.id]
            assert (claim.value, claim.ci95) == (entry.get("value"), entry.get("ci")), claim.id
            assert paper.arxiv == entry["arxiv"], claim.id
            assert (claim.verified or paper.verified) == SOURCES[entry["verified"]], claim.id
            assert paper.by == entry.get("rerun_by"), claim.id
            # A baseline that is worse than the paper's flatters the learner beside it.
            lower = re.search("MSE|NLL|ELBO|loss", entry["metric"]) is not None
            assert claim.lower_is_better == lower, f"{claim.id}: {entry['metric']}"
            assert claim.percent == ("%" in entry["metric"]), claim.id
            walked.add(claim.id)
            different |= differing(claim, entry, config)
            for budget in (value for key, value in (entry.get("hyperparameters") or {}).items() if key in BUDGETS):
                if type(budget) is int and config["runner"]["iterations"] < budget:
                    assert paper.iterations == budget, f"{name}: a miss would be one of a smaller budget"
        assert different == set(paper.differs or ()), name
    assert walked == set(CATALOGUE)


def test_what_is_not_covered_is_named() -> None:
    named = [name for names in NOT_COVERED.values() for name in names]
    assert len(named) == len(set(named))
    assert not set(named) & set(CATALOGUE)
    assert set(CATALOGUE) == {
        claim.id for paper in PAPERS.values() for claim in paper.claims if paper.source(claim) != "own"
    }


def test_the_catalogue_here_is_an_extract_of_the_whole() -> None:
    data = os.environ.get("METARUN_DATA")
    whole = Path(data).parent / "baselines.yaml" if data else None
    if whole is None or not whole.is_file():
        pytest.skip("the whole catalogue does not lie beside METARUN_DATA")
    entries = {e["id"]: e for e in read(whole)["baselines"]}
    for name, entry in EXTRACT.items():
        assert entries[name] == entry, name
    named = {name for names in NOT_COVERED.values() for name in names}
    assert set(EXTRACT) | named == set(entries)


def data_of(name: str) -> str:
    """Where a recipe's tasks come from: ``generated``, ``omniglot``, or data that do not lie in METARUN_DATA."""
    target = composed(name)["task"]["_target_"]
    if target.startswith(("metarun.tasks.regression.", "metarun.tasks.rl.")):
        return "generated"
    return "omniglot" if target.startswith("metarun.tasks.vision.omniglot.") else "other"


def take_a_step(name: str, folder: Path) -> None:
    """Build what the recipe describes and learn from its first task alone; learning histories are random."""
    config = copy.deepcopy(composed(name))
    if "histories" in config["algorithm"]:
        spec, steps = (
            construct(config["task"], seed=0).spec,
            config["algorithm"]["context"] * config["algorithm"]["every"],
        )
        config["algorithm"]["histories"] = str(random_histories(folder, spec, steps))
    run = build({**config, "name": "x", "runner": {**config["runner"], "device": "cpu", "meta_batch": 1}})
    batch = run.task.batch("train", [0], run.algorithm.train_shape(run.task.shape))
    metrics = run.algorithm.meta_step(batch, 0)
    assert metrics or not config["runner"]["iterations"], name
    assert all(torch.as_tensor(value).isfinite().all() for value in metrics.values()), name


def classes_of(name: str) -> tuple[str, ...]:
    """The classes of a recipe's task, model and algorithm."""
    return tuple(composed(name)[group]["_target_"] for group in ("task", "model", "algorithm"))


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_recipes_of_generated_tasks_take_a_step(tmp_path: Path, each: bool) -> None:
    """One of those that name the same classes, or each."""
    names = [name for name in PAPERS if data_of(name) == "generated"]
    for name in names if each else {classes_of(name): name for name in names}.values():
        take_a_step(name, tmp_path / name)
    assert names


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_recipes_of_omniglot_take_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = omniglot.load, {}

    def once(parts: Any, *how: Any) -> Any:
        if how not in loaded:
            loaded[how] = load(parts, *how)
        return loaded[how]

    monkeypatch.setattr(omniglot, "load", once)
    names = [name for name in PAPERS if data_of(name) == "omniglot"]
    for name in names:
        take_a_step(name, tmp_path)
    assert names


def test_records_are_of_recipes_as_they_are() -> None:
    """A record's configuration is what its recipe asks for now; one that is not must be shown as stale."""
    records = stored(RECORDS)
    assert set(records) <= set(PAPERS)
    for name, result in records.items():
        if standing(name, result) in ("stale", "untraced"):
            continue
        assert standing(name, result) == "sound", f"{name}: only sound records are kept"
        assert result["configuration_sha256"] == sha256(result["configuration"]), name
        now = flat(experiment_identity({**composed(name), "name": result["configuration"]["name"]}))
        then = flat(updated(result["configuration"]))
        assert {key: value for key, value in now.items() if key in then} == then, name
        assert set(result["claims"]) == {claim.id for claim in PAPERS[name].claims}, name
        assert not any(os.path.isabs(str(value)) for value in then.values()), f"{name}: names a place of a machine"


def flat(section: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    found = {}
    for key, value in section.items():
        inner = isinstance(value, dict) and bool(value)
        found |= flat(value, f"{above}{key}.") if inner else {above + key: value}
    return found


def stated_minutes(text: str) -> float | None:
    """The CPU minutes of a seed that a recipe states from a measurement: a number or the ends of a range."""
    found = re.search(
        r"#.*?(?<!arithmetic )(?<!extrapolation )(?<!estimated: )(?<!extrapolated: )"
        r"\b([\d.]+)(?: to ([\d.]+))? (minute|hour)s?\b[^,;]* on one (?:busy )?core",
        text,
    )
    if not found:
        return None
    ends = [float(each) for each in found.groups()[:2] if each]
    return sum(ends) / len(ends) * (60 if found[3] == "hour" else 1)


def contradiction(stated: float | None, result: Mapping[str, Any]) -> str | None:
    """Why a record on the CPU does not bear out the stated minutes of a seed; ``None`` if it does.

    CPU time, which other programs do not lengthen as they do the wall time, must be within a factor of two. Records
    from before it was measured have wall times, of which the shortest is at least the CPU time of its one thread. Both
    are times of training, of which recipes without any say nothing.
    """
    if result["iterations"] == 0:
        return None
    cpu = [each / 60 for each in (result.get("cpu_s") or {}).values() if each is not None]
    wall = [each / 60 for each in result["train_s"].values() if each is not None]
    took = sum(cpu) / len(cpu) if cpu else min(wall)
    if stated is None:
        return f"took {took:.1f} minutes a seed and states no measured time on one core"
    lowest = took / 2 if cpu else 0
    return None if lowest <= stated <= 2 * took else f"took {took:.1f} minutes a seed on one core, not {stated:.0f}"


def test_recipes_state_the_time_that_their_records_took() -> None:
    texts = {entry.name: entry.path.read_text() for entry in catalogue("experiment")}
    records = {name: result for name, result in stored(RECORDS).items() if result["device"] == "cpu"}
    assert records
    found = {name: contradiction(stated_minutes(texts[name]), result) for name, result in records.items()}
    assert not {name: why for name, why in found.items() if why}
    for page in (ROOT / "README.md", *sorted((ROOT / "metarun" / "docs").glob("*.md"))):
        for line in page.read_text().splitlines():
            named = re.search(r"metarun (?:reproduce |experiment=)(\S+) +#", line)
            if named and named[1] in records and (stated := stated_minutes(line)) is not None:
                assert contradiction(stated, records[named[1]]) is None, f"{page.name}: {line}"


@pytest.mark.parametrize(
    ("stated", "times", "why"),
    [
        (4, {"cpu_s": {"0": 300.0, "1": None}, "train_s": {"0": 900.0}}, None),
        (2, {"cpu_s": {"0": 300.0}, "train_s": {"0": 900.0}}, "took 5.0 minutes a seed on one core, not 2"),
        (None, {"cpu_s": {"0": 300.0}, "train_s": {"0": 900.0}}, "took 5.0 minutes a seed and states no measured"),
        (2, {"train_s": {"0": 900.0, "1": 3000.0}}, None),
        (2, {"iterations": 0, "cpu_s": {"0": 0.5}, "train_s": {"0": 0.6}}, None),
        (360, {"train_s": {"0": 9000.0, "1": 9900.0}}, "took 150.0 minutes a seed on one core, not 360"),
        (None, {"train_s": {"0": 9000.0}}, "took 150.0 minutes a seed and states no measured time"),
    ],
)
def test_what_contradicts_a_stated_time(stated: float | None, times: dict[str, Any], why: str | None) -> None:
    found = contradiction(stated, {"iterations": 100, **times})
    assert found is None if why is None else found is not None and found.startswith(why)


def quoted_wrongly(words: str, each: bool, seeds: Mapping[str, Mapping[str, float]]) -> bool:
    """True if the first numbers in some words are not a record's, to as many digits as are written: the means of the
    seeds in turn, or their mean and half of its interval.
    """
    written = re.findall(r"-?\d*\.?\d+", words.replace("−", "-"))
    means, halves = ([seed[key] for seed in seeds.values()] for key in ("mean", "ci95"))
    held = means if each else [sum(means) / len(means)]
    if not each and "±" in words:
        held.append(sum(halves) / len(halves))
    digits = [len(number.partition(".")[2]) for number in written]
    return any(
        abs(float(number) - value) > 0.5 * 10**-places + 1e-9
        for number, value, places in zip(written, held, digits, strict=False)
    ) or len(written) < len(held)


def test_quoted_figures_are_those_of_the_records() -> None:
    records = stored(RECORDS)
    for page, name, claim, words, *each in read(HERE / "quoted.yaml"):
        assert words in (ROOT / page).read_text(), f"{page} no longer says: {words}"
        seeds = records[name]["claims"][claim]["seeds"]
        assert not quoted_wrongly(words, bool(each), seeds), f"{page} says {words!r}, but the record of {name}: {seeds}"


def test_a_wrong_quotation_would_be_noticed() -> None:
    seeds = {"0": {"mean": -0.46, "ci95": 0.044}, "1": {"mean": -0.43, "ci95": 0.046}}
    assert not quoted_wrongly("−.445 ± .045 for", False, seeds)
    assert not quoted_wrongly("−.46 and −.43", True, seeds)
    assert quoted_wrongly("−.442 ± .023 for", False, seeds)
    assert quoted_wrongly("−.445 ± .023 for", False, seeds)
    assert quoted_wrongly("−.43 and −.46", True, seeds)
    assert quoted_wrongly("no number", False, seeds)


@pytest.mark.parametrize(
    ("line", "minutes"),
    [
        ("#   metarun reproduce a/b      7 minutes a seed on one core; GPU not timed", 7),
        ("#   metarun reproduce a/b      3 seeds, about 2 minutes each on one core", 2),
        ("#   metarun reproduce a/b      15 to 20 minutes a seed on one core; GPU not timed", 17.5),
        ("#   metarun reproduce a/b      about 6 hours a seed on one core", 360),
        ("#   metarun reproduce a/b      by arithmetic 80 minutes a seed on one core, 6 minutes on a GPU", None),
        ("#   metarun reproduce a/b      by extrapolation 1 hour a seed on one core; GPU not timed", None),
        ("#   metarun reproduce a/b      estimated: 80 minutes per seed on one core, 6 minutes on a GPU", None),
        ("#   metarun reproduce a/b      extrapolated: 1 hour per seed on one core; not timed on a GPU", None),
        ("#   metarun reproduce a/b      15 to 20 minutes per seed on one core; not timed on a GPU", 17.5),
        ("#   metarun reproduce a/b\n#       69 minutes per seed on one busy core; not timed on a GPU", 69),
        ("#   metarun reproduce a/b      by arithmetic 3 hours on two cores, 15 minutes on a GPU", None),
    ],
)
def test_what_a_recipe_states(line: str, minutes: float | None) -> None:
    assert stated_minutes(line) == minutes


def test_a_time_may_stand_in_the_line_below_the_command() -> None:
    assert (
        stated_time("simpleshot/mini_imagenet_cl2n_5way_1shot")
        == "estimated: 14 hours on two cores, 7 minutes on a GPU"
    )
    assert all(stated_time(name) for name, paper in PAPERS.items())


@pytest.fixture
def sound() -> tuple[str, dict[str, Any]]:
    """A record as ``reproduce`` would write it, of made-up results that reach every value."""
    name = "maml/sinusoid"
    claims = {
        claim.id: {"metric": claim.metric, "seeds": {str(s): {"mean": claim.value, "ci95": 0.1} for s in range(3)}}
        for claim in PAPERS[name].claims
    }
    entry = next(e for e in catalogue("experiment") if e.name == name)
    recipe = {name: entry.path.read_text()}
    return name, signed({"id": name, "clean": True, "iterations": 70000, "claims": claims, "recipe": recipe})


def signed(result: dict[str, Any]) -> dict[str, Any]:
    unsigned = {key: value for key, value in result.items() if key != "digest"}
    return {**unsigned, "digest": sha256(unsigned)}


def test_only_a_sound_pass_over_three_seeds_counts(sound: tuple[str, dict[str, Any]]) -> None:
    name, result = sound
    paper = PAPERS[name]
    assert standing(name, result) == "sound"
    assert counts(name, paper, result)

    dirty = signed({**result, "clean": False})
    text = result["recipe"][name]
    other = signed({**result, "recipe": {name: text.replace("paper:", "runner: {iterations: 10}\npaper:")}})
    commented = signed({**result, "recipe": {name: "# another comment\n" + text}})
    untraced = {key: value for key, value in result.items() if key != "digest"}
    edited = copy.deepcopy(result)
    next(iter(edited["claims"].values()))["seeds"]["0"]["mean"] = 0.01
    standings = [standing(name, each) for each in (dirty, other, commented, untraced, edited)]
    assert standings == ["not committed", "stale", "sound", "untraced", "altered"]
    assert [counts(name, paper, each) for each in (dirty, other, untraced, edited)] == [False] * 4

    single = copy.deepcopy(result)
    for claim in single["claims"].values():
        claim["seeds"] = {"0": claim["seeds"]["0"]}
    assert not counts(name, paper, signed(single))
    recalled = dataclasses.replace(paper, verified="recalled")
    assert worst(findings(recalled, result)) == "pass"
    assert not counts(name, recalled, result)
    quoted = dataclasses.replace(paper, verified="quoted")
    assert counts(name, quoted, result)
    assert not counts(name, quoted, result, FIRST_HAND)


def test_the_headline_tells_quoted_values_from_those_read_first_hand(sound: tuple[str, dict[str, Any]]) -> None:
    name, result = sound
    quoted = {**PAPERS, name: dataclasses.replace(PAPERS[name], verified="quoted")}
    assert "1 of them pass over at least 3 seeds: 1 against values read" in headline(PAPERS, {name: result})
    assert "named re-run, 1 against values that others quote" in headline(quoted, {name: result})
    untrained = signed({**result, "iterations": 0})
    assert "Of these, 0 are controls" in headline(PAPERS, {name: result})
    assert "Of these, 1 are controls" in headline(PAPERS, {name: untrained})


def test_the_readmes_show_what_is_stored() -> None:
    records = stored(RECORDS)
    assert generated_in((RECORDS / "README.md").read_text()) == markdown(PAPERS, records)
    assert generated_in((ROOT / "README.md").read_text()) == headline(PAPERS, records) + "\n"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"id": 3}', '{"id": "maml/sinusoid"}', '{"id": "maml/sinusoid", "claims": 1}']
)
def test_a_damaged_record_is_named_and_left_out(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "maml--sinusoid.json").write_text(text)
    known = recipes()
    found = stored(tmp_path)
    assert not set(found) & set(known)
    if "id" not in text or "maml" in text:
        assert f"left out: {tmp_path / 'maml--sinusoid.json'} is damaged" in caplog.text


class Stub:
    """A finished run of maml/sinusoid, started and resumed in checkouts of a test's choosing."""

    path = Path("run")

    def __init__(self, config: dict[str, Any], *states: tuple[str, bool]) -> None:
        self._config = config
        parts: list[dict[str, Any]] = [
            {"git": {"commit": commit, "dirty": dirty}, "iteration": 10} for commit, dirty in states
        ]
        kept = {"python": "3", "versions": {}, "device": "cpu", "threads": 1, "host": {"cpu": "x"}, "end": "now"}
        self._meta = {**parts[0], **kept, **({"resumed": parts[1:]} if parts[1:] else {})}

    def config(self) -> dict[str, Any]:
        return self._config

    def meta(self) -> dict[str, Any]:
        return self._meta

    def summary(self) -> dict[str, Any]:
        points = [{"step": step, "mean": 1.0, "ci95": 0.1, "n": 600} for step in range(11)]
        test = {"mse": {"mean": 1.0, "ci95": 0.1, "n": 600}}
        return {"test": test, "adaptation": points, "iterations": 70000, "protocol": {}, "wall_s": 1.0}


def test_a_record_knows_where_its_runs_were_resumed() -> None:
    config = named(compose(["experiment=maml/sinusoid"]))
    for states, clean, resumed in (
        ([("a", False)], True, {}),
        ([("a", False), ("b", False)], True, {"0": [[10, "b"]]}),
        ([("a", False), ("a", True)], False, {"0": [[10, "a"]]}),
        ([("a", True), ("a", False)], False, {"0": [[10, "a"]]}),
    ):
        found = record("maml/sinusoid", config, {0: Stub(config, *states)})  # type: ignore[dict-item]
        assert (found["clean"], found["resumed_at"], found["commits"]) == (clean, resumed, {"0": "a"})
