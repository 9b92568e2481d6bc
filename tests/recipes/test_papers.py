"""Recipes that compare with a paper: their numbers and protocols are those of the catalogue, and the README's table is
what the stored results make of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from metarun.config.catalogue import catalogue
from metarun.config.compose import compose
from metarun.reports.paper import Paper
from metarun.reports.reproductions import markdown, stored, table_in

ROOT = Path(__file__).parents[2]
CATALOGUE: dict[str, dict[str, Any]] = {
    entry["id"]: entry for entry in yaml.safe_load((Path(__file__).parent / "catalogue.yaml").read_text())
}
PAPERS = {e.name: Paper.of(e.content["paper"]) for e in catalogue("experiment") if e.content.get("paper")}
SOURCES = {
    "paper": "paper",
    "authors' code": "code",
    "quoted by a third party": "quoted",
    "unverified": "recalled",
}


def protocol(name: str) -> dict[str, Any]:
    """What the recipe tests, under the names of the catalogue."""
    config = compose([f"experiment={name}"]).config
    return {**{key: config["task"].get(key) for key in ("way", "shot", "query")}, **config["runner"]}


def test_every_claim_is_the_catalogues() -> None:
    walked = 0
    for name, paper in PAPERS.items():
        ours = protocol(name)
        for claim in paper.claims:
            entry = CATALOGUE[claim.id]
            assert (claim.value, claim.ci95) == (entry.get("value"), entry.get("ci")), claim.id
            assert paper.arxiv == entry["arxiv"], claim.id
            assert paper.verified == SOURCES[entry["verified"]], claim.id
            assert claim.percent == ("%" in entry["metric"]), claim.id
            walked += 1
            fields = ["shot", "query"] + (["way"] if not claim.metric.endswith("way") else [])
            differing = {
                field for field in fields
                if type(entry.get(field)) is int and ours.get(field) is not None and ours[field] != entry[field]
            }  # fmt: skip
            if type(entry.get("test_episodes")) is int and ours["test_episodes"] < entry["test_episodes"]:
                differing.add("test_episodes")  # more of them are only more precise
            assert differing == set(paper.differs or ()), f"{name}: {claim.id}"
            published = (entry.get("hyperparameters") or {}).get("iterations")
            if type(published) is int and ours["iterations"] < published:
                assert paper.iterations == published, f"{name}: a miss would be one of a smaller budget"
    assert walked == len(CATALOGUE) == 21


def test_the_catalogue_here_is_an_extract_of_the_whole() -> None:
    data = os.environ.get("METARUN_DATA")
    whole = Path(data).parent / "baselines.yaml" if data else None
    if whole is None or not whole.is_file():
        pytest.skip("the whole catalogue does not lie beside METARUN_DATA")
    entries = {e["id"]: e for e in yaml.load(whole.read_text(), Loader=yaml.CSafeLoader)["baselines"]}
    for name, entry in CATALOGUE.items():
        assert entries[name] == entry, name


def test_the_readme_shows_what_is_stored() -> None:
    results = stored(ROOT / "outputs" / "reproduced")
    assert set(results) <= set(PAPERS)
    for name, result in results.items():
        claims = {c.id: c for c in PAPERS[name].claims}
        assert set(result["claims"]) == set(claims), name
        for key, found in result["claims"].items():
            mean = sum(each["mean"] for each in found["seeds"].values()) / len(found["seeds"])
            assert found["ours"] == pytest.approx(mean, rel=1e-12), key
            limit = claims[key].limit(found["ci95"])
            reached = mean <= limit if claims[key].lower_is_better else mean >= limit
            assert reached == (found["verdict"] == "pass"), key
    assert table_in((ROOT / "README.md").read_text()) == markdown(PAPERS, results)
