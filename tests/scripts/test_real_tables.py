"""The comparison on real tables: ranks, and what is printed and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.script import script

tables = script("tables")
SCORES = {
    "learner": np.array([0.9, 0.8, 0.7]),
    "random_forest": np.array([0.8, 0.8, 0.9]),
    "linear": np.array([0.7, 0.6, 0.8]),
}


def test_equal_scores_share_their_mean_rank() -> None:
    assert tables.ranks(SCORES).tolist() == [[1, 2, 3], [1.5, 1.5, 3], [3, 1, 2]]


def test_the_set_that_is_lost_most_comes_first(tmp_path: Path) -> None:
    lines = tables.report(["a", "b", "c"], SCORES, np.array([True, True, True]))
    assert [line.split()[0] for line in lines[1:4]] == ["c", "b", "a"]
    assert lines[5].split()[-3:] == pytest.approx(["1.83", "1.50", "2.67"])
    assert lines[-2].startswith("learner - random_forest: -0.0333 +- ")
    assert lines[-2].endswith("better on 1 of 3")
    tables.picture(SCORES, tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 1000


def test_a_set_that_is_left_out_is_shown_and_in_no_mean() -> None:
    lines = tables.report(["a", "b", "c"], SCORES, np.array([True, True, False]))
    assert [line.split()[0] for line in lines[1:4]] == ["c", "b", "a"]
    assert lines[1].startswith("c (left out)  ")
    assert lines[4].split()[1] == "0.8500"
    assert lines[-2].startswith("learner - random_forest: +0.0500 +- ")
    assert lines[-2].endswith("better on 1 of 2")
