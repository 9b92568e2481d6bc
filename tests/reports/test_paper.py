"""Claims of papers, and the rule by which runs are judged against them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metarun.config.paper import Claim, Finding, Paper, worst
from metarun.errors import UserError
from metarun.reports.reproductions import published

SECTION: dict[str, Any] = {
    "title": "T", "arxiv": "1", "where": "table 1", "verified": "paper",
    "claims": {"a": {"metric": "accuracy", "value": 98.0, "percent": True}},
}  # fmt: skip


def summary(mean: float, ci95: float, iterations: int = 10) -> dict[str, Any]:
    estimate = {"mean": mean, "ci95": ci95, "n": 9}
    return {"iterations": iterations, "test": {"accuracy": estimate}, "adaptation": [{"step": 1, **estimate}]}


def found(claim: Claim, *seeds: tuple[float, float], short: bool = False) -> Finding:
    return Finding(claim, dict(enumerate(seeds)), short)


def test_a_pass_is_within_the_papers_own_interval() -> None:
    claim = Claim("a", "accuracy", 98.0, ci95=0.3)
    assert found(claim, (97.5, 0.2), (97.9, 0.2), (97.8, 0.2)).verdict == "pass"
    assert found(claim, (97.5, 0.2), (97.8, 0.2), (97.7, 0.2)).verdict == "miss"
    for half in (1e-9, 9.0):
        assert found(claim, (97.69, half), (97.69, half), (97.69, half)).verdict == "miss", "whatever our test's width"
    finding = found(claim, (97.5, 0.2), (97.9, 0.2), (97.8, 0.2))
    assert (finding.worst_seed, finding.ours) == (0, pytest.approx(97.7333, abs=1e-4))


def test_a_rounded_value_stands_for_all_that_round_to_it() -> None:
    exact, rounded = (Claim("a", "return", 6.7, decimals=decimals) for decimals in (None, 1))
    for mean, verdict in ((6.66, "pass"), (6.64, "miss")):
        seeds = [(mean, 0.0)] * 3
        assert [found(claim, *seeds).verdict for claim in (exact, rounded)] == ["miss", verdict]
    error = Claim("a", "mse", 2.4, decimals=1, lower_is_better=True)
    assert [found(error, *[(mean, 0.0)] * 3).verdict for mean in (2.44, 2.46)] == ["pass", "miss"]


def test_without_one_it_is_within_ours_over_seeds() -> None:
    claim = Claim("a", "mse", 0.5, lower_is_better=True)
    seeds = (0.50, 0.52, 0.54)
    exact = found(claim, *((mean, 0.0) for mean in seeds))
    assert exact.student == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)
    assert exact.slack == pytest.approx(0.02)
    assert exact.verdict == "pass"
    assert found(claim, *((mean + 0.03, 0.0) for mean in seeds)).verdict == "miss"


def test_seeds_that_differ_do_not_pass_without_one_that_reached_the_value() -> None:
    claim = Claim("a", "nll", -11.5, lower_is_better=True)
    assert found(claim, (-4.6, 0.2), (-7.9, 0.2), (-8.4, 0.2)).verdict == "inconclusive"
    assert found(claim, (-4.6, 0.2), (-7.9, 0.2), (-11.6, 0.0)).verdict == "pass"
    assert found(claim, (-8.4, 0.0), (-8.4, 0.0), (-8.4, 0.0)).verdict == "miss"
    rough = found(claim, (-4.6, 8.0), (-7.9, 8.0), (-11.6, 8.0))
    assert rough.slack == 0, "a test as rough as the seeds' spread says nothing of the best seed"


def test_fewer_test_episodes_never_make_passing_easier() -> None:
    """The seeds' spread is not counted twice: what a test of few episodes adds to it is taken off."""
    claim = Claim("a", "mse", 0.5, lower_is_better=True)
    for part in ("slack", "student"):
        slacks = [
            getattr(found(claim, *((m, half) for m in (0.50, 0.52, 0.54))), part) for half in (0.0, 0.01, 0.03, 1.0)
        ]
        assert slacks == sorted(slacks, reverse=True)
        assert slacks[-1] == 0
    generator = np.random.default_rng(0)
    spread: dict[int, list[float]] = {episodes: [] for episodes in (400, 40_000)}
    for episodes, widths in spread.items():
        error = 1 / episodes**0.5
        for _ in range(1000):
            means = 0.1 * generator.standard_normal(3) + error * generator.standard_normal(3)
            widths.append(found(claim, *((mean, 1.96 * error) for mean in means)).slack ** 2)
    # Unbiased but for the cut at 0, which a test of few episodes meets more often.
    assert np.mean(spread[400]) < 1.2 * np.mean(spread[40_000])


def test_a_single_seed_never_passes() -> None:
    claim = Claim("a", "accuracy", 98.0, ci95=0.3)
    assert found(claim, (99.9, 0.1)).verdict == "consistent"
    assert found(claim, (99.9, 0.1), (99.8, 0.1)).verdict == "consistent"
    assert found(claim, (97.0, 0.1)).verdict == "miss"


def test_a_miss_after_fewer_iterations_is_one_of_budget() -> None:
    claim = Claim("a", "accuracy", 98.0, ci95=0.3)
    assert found(claim, (50.0, 1.0), short=True).verdict == "budget not reached"
    assert found(claim, (99.0, 1.0), short=True).verdict == "consistent"
    paper = Paper.of({**SECTION, "iterations": 11})
    assert [paper.is_short({10}), paper.is_short({10, 11})] == [True, False]


def test_a_bar_is_no_pass() -> None:
    claim = Claim("a", "accuracy", None, bar=50.0, because="of this")
    finding = found(claim, (50.0, 1.0), (51.0, 1.0), (52.0, 1.0))
    assert (finding.verdict, finding.bar_reached) == (None, True)
    both = found(Claim("a", "accuracy", 98.0, bar=50.0, because="of this"), *[(50.0, 1.0)] * 3)
    assert (both.verdict, both.bar_reached) == ("miss", True)


def test_what_is_not_finite_reaches_nothing() -> None:
    claim = Claim("a", "accuracy", 98.0, bar=50.0, because="of this")
    estimate = {"accuracy": {"mean": None, "ci95": None}}
    finding = Finding(claim, {seed: claim.found({"test": estimate}) for seed in range(3)}, False)
    assert (finding.verdict, finding.bar_reached) == ("miss", False)


def test_the_worst_claim_is_the_papers() -> None:
    low = {"metric": "accuracy", "value": 10.0, "percent": True}
    paper = Paper.of({**SECTION, "claims": {**SECTION["claims"], "b": low}})
    assert worst(paper.findings({seed: summary(0.99, 0.01) for seed in range(3)})) == "pass"
    assert worst(paper.findings({seed: summary(0.5, 0.01) for seed in range(3)})) == "miss"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tilte": "T"}, "unknown key 'paper.tilte' - did you mean 'title'?"),
        ({"arxiv": 1703.1}, "paper.arxiv=1703.1: input should be a valid string"),
        (
            {"verified": "sure"},
            "paper.verified='sure': input should be 'paper', 'code', 'rerun', 'quoted', 'recalled' or 'own'",
        ),
        ({"verified": "rerun"}, "paper.by names the author of a re-run"),
        ({"claims": {}}, "paper.claims: give one entry"),
        ({"claims": {"a": {"metric": "x"}}}, "paper.claims.a needs a value, or a bar"),
        ({"claims": {"a": {"metric": "x", "bar": 1.0}}}, "paper.claims.a: bar and because need each other"),
        (
            {"claims": {"a": {"metric": "x", "value": 6.75, "decimals": 1}}},
            "value=6.75 has more than 1 decimals",
        ),
        ({"verified": "own"}, "with paper.verified=own there is no published value"),
        ({"claims": {"a": {"value": 1.0}}}, "paper.claims.a.metric is missing"),
        ({"claims": {"a": {"metric": "x", "value": "9"}}}, "paper.claims.a.value='9'"),
    ],
)
def test_what_a_section_may_not_be(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Paper.of({**SECTION, **changed})
    assert message in str(error.value)


def test_a_number_of_another_source_is_marked_as_such() -> None:
    sources = {"b": "recalled", "c": "quoted", "d": "code"}
    claims = {name: {"metric": "accuracy", "value": 9.0, "verified": source} for name, source in sources.items()}
    paper = Paper.of({**SECTION, "claims": {**SECTION["claims"], **claims}})
    assert [published(paper, claim) for claim in paper.claims] == [
        "98", "(9, from memory)", "9 (quoted)", "9 (authors' code)",
    ]  # fmt: skip
    rerun = Paper.of({**SECTION, "verified": "rerun", "by": "PaddleFSL"})
    assert published(rerun, rerun.claims[0]) == "98 (re-run by PaddleFSL)"


def test_what_recipes_share_has_no_claims() -> None:
    assert Paper.of({key: value for key, value in SECTION.items() if key != "claims"}).claims == ()


def test_a_metric_that_the_run_lacks() -> None:
    with pytest.raises(UserError, match=r"paper\.claims\.a: the run has no nll   it has: accuracy"):
        Claim("a", "nll", 1.0).found(summary(1, 1))


def test_a_baseline_of_our_own_needs_no_value_and_gets_no_verdict() -> None:
    paper = Paper.of({**SECTION, "verified": "own", "claims": {"a": {"metric": "accuracy"}}})
    (finding,) = paper.findings({seed: summary(0.9, 0.01) for seed in range(3)})
    assert finding.verdict is None
    assert finding.bar_reached is None
    assert published(paper, finding.claim) == "nothing: our own baseline"
