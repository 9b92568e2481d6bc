"""Claims of papers, and how runs are judged by them."""

from __future__ import annotations

from typing import Any

import pytest

from metarun.errors import UserError
from metarun.reports.paper import Claim, Paper
from metarun.reports.reproductions import published

SECTION: dict[str, Any] = {
    "title": "T", "arxiv": "1", "where": "table 1", "verified": "paper",
    "claims": {"a": {"metric": "accuracy", "value": 98.0, "percent": True}},
}  # fmt: skip


def summary(mean: float, ci95: float, iterations: int = 10) -> dict[str, Any]:
    estimate = {"mean": mean, "ci95": ci95, "n": 9}
    return {"iterations": iterations, "test": {"accuracy": estimate}, "adaptation": [{"step": 1, **estimate}]}


def test_the_mean_may_fall_short_by_the_larger_interval() -> None:
    claim = Claim("a", "accuracy", 98.0, ci95=0.3, percent=True)
    runs = {0: summary(0.975, 0.002), 1: summary(0.979, 0.002), 2: summary(0.978, 0.002)}
    found = claim.judge(runs, None)
    assert found["ours"] == pytest.approx(97.7333, abs=1e-4)
    assert found["bar"] == pytest.approx(97.7)
    assert (found["verdict"], found["worst_seed"], found["worst"]) == ("pass", 0, pytest.approx(97.5))
    runs[2] = summary(0.976, 0.002)
    assert claim.judge(runs, None)["verdict"] == "miss"
    wide = {seed: summary(run["test"]["accuracy"]["mean"], 0.005) for seed, run in runs.items()}
    assert claim.judge(wide, None)["bar"] == pytest.approx(97.5)
    assert claim.judge(wide, None)["verdict"] == "pass"


def test_a_loss_may_be_higher_by_it() -> None:
    claim = Claim("a", "accuracy", 0.5, step=1, lower_is_better=True)
    found = claim.judge({0: summary(0.52, 0.02), 1: summary(0.515, 0.02)}, None)
    assert (found["verdict"], found["worst_seed"], found["bar"]) == ("pass", 0, pytest.approx(0.52))
    assert claim.judge({0: summary(0.53, 0.02)}, None)["verdict"] == "miss"


def test_a_miss_after_fewer_iterations_is_one_of_budget() -> None:
    claim = Claim("a", "accuracy", 98.0, percent=True)
    assert claim.judge({0: summary(0.5, 0.01)}, 11)["verdict"] == "budget not reached"
    assert claim.judge({0: summary(0.5, 0.01)}, 10)["verdict"] == "miss"
    assert claim.judge({0: summary(0.99, 0.01)}, 11)["verdict"] == "pass"


def test_a_bar_stands_instead_of_the_value() -> None:
    claim = Claim("a", "accuracy", 98.0, percent=True, bar=50.0, because="of this")
    assert claim.judge({0: summary(0.5, 0.3)}, None)["verdict"] == "pass"
    assert claim.judge({0: summary(0.499, 0.3)}, None)["verdict"] == "miss"


def test_the_worst_claim_is_the_papers() -> None:
    low = {"metric": "accuracy", "value": 10.0, "percent": True}
    paper = Paper.of({**SECTION, "claims": {**SECTION["claims"], "b": low}})
    assert paper.judge({0: summary(0.99, 0.01)})["verdict"] == "pass"
    assert paper.judge({0: summary(0.5, 0.01)})["verdict"] == "miss"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tilte": "T"}, "unknown key 'paper.tilte' - did you mean 'title'?"),
        ({"arxiv": 1703.1}, "paper.arxiv=1703.1: input should be a valid string"),
        ({"verified": "sure"}, "paper.verified='sure': input should be 'paper', 'code', 'quoted' or 'recalled'"),
        ({"claims": {}}, "paper.claims: one entry"),
        ({"claims": {"a": {"metric": "x"}}}, "paper.claims.a needs a value, or a bar"),
        ({"claims": {"a": {"metric": "x", "bar": 1.0}}}, "paper.claims.a: a bar needs its because"),
        ({"claims": {"a": {"value": 1.0}}}, "paper.claims.a.metric is missing"),
        ({"claims": {"a": {"metric": "x", "value": "9"}}}, "paper.claims.a.value='9'"),
    ],
)
def test_what_a_section_may_not_be(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Paper.of({**SECTION, **changed})
    assert message in str(error.value)


def test_a_number_of_another_source_is_marked_as_such() -> None:
    claims = {**SECTION["claims"], "b": {"metric": "accuracy", "value": 9.0, "verified": "recalled"}}
    paper = Paper.of({**SECTION, "claims": claims})
    assert [published(paper, claim) for claim in paper.claims] == ["98", "(9, from memory)"]
    stored = paper.judge({0: summary(0.99, 0.01)})["claims"]
    assert (stored["a"].get("verified"), stored["b"]["verified"]) == (None, "recalled")


def test_what_recipes_share_has_no_claims() -> None:
    assert Paper.of({key: value for key, value in SECTION.items() if key != "claims"}).claims == ()


def test_a_metric_that_the_run_lacks() -> None:
    with pytest.raises(UserError, match=r"paper\.claims\.a: the run has no nll   it has: accuracy"):
        Claim("a", "nll", 1.0).judge({0: summary(1, 1)}, None)
