"""Synthetic tables: purity, the structures against loops, and what classes and columns promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.tabular import structures
from metarun.tasks.tabular.columns import Effects
from metarun.tasks.tabular.draws import Draws, ranks
from metarun.tasks.tabular.labels import classes, first_of_each
from metarun.tasks.tabular.prior import TablePrior
from tests.composed import composed


def task(seed: int = 0, **changes: Any) -> TablePrior:
    return construct({**composed("task=tabular/prior")["task"], **changes}, seed=seed)


def draws(tables: int = 4) -> Draws:
    return Draws(0, "train", range(tables))


def test_a_task_depends_on_seed_split_and_index_alone() -> None:
    family = task(3)
    batch, alone = family.batch("train", range(16, 24)), family.batch("train", [21])
    for name in ("support", "query"):
        for part in ("x", "y"):
            whole, one = (getattr(getattr(b, name), part) for b in (batch, alone))
            torch.testing.assert_close(whole[5], one[0], rtol=0, atol=0, equal_nan=True)
    others = family.batch("val", [21]), task(4).batch("train", [21])
    for other in others:
        assert other.query.x.shape != alone.query.x.shape or not torch.equal(other.query.y, alone.query.y)


def test_tables_share_their_sizes_in_groups_within_the_ranges() -> None:
    family = task(columns=[2, 5], least_shot=10, shot=14)
    sizes = {tuple(family.batch("train", [8 * i]).support.x.shape[1:]) for i in range(60)}
    assert {rows for rows, _ in sizes} == set(range(10, 15))
    assert {columns for _, columns in sizes} == {2, 3, 4, 5}
    assert family.tested_together == 8
    assert task(columns=[3, 3], least_shot=20, shot=20).tested_together == 1
    with pytest.raises(UserError, match=r"runner\.meta_batch"):
        family.batch("train", range(4, 40))


def test_every_class_has_a_support_row_and_classes_are_numbered() -> None:
    ways = set()
    for i in range(20):
        batch = task().batch("train", range(8 * i, 8 * i + 8))
        for (_, support), (_, query) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            found = support.unique()
            assert found.tolist() == list(range(len(found)))
            assert set(query.tolist()) <= set(found.tolist())
            ways.add(len(found))
        assert torch.isfinite(batch.support.x[~batch.support.x.isnan()]).all()
    assert ways == set(range(2, 11))


@pytest.mark.parametrize(
    "off", [{"causal": 0, "networks": 0}, {"causal": 0, "trees": 0}, {"networks": 0, "trees": 0}, {"gaps": 0}]
)
def test_a_part_of_the_prior_can_be_left_out(off: dict[str, Any]) -> None:
    batch = task(**off).batch("train", range(8))
    assert not torch.equal(batch.support.y, task().batch("train", range(8)).support.y) or "gaps" in off
    if "gaps" in off:
        assert not batch.support.x.isnan().any()


def test_gaps_are_in_the_given_share_of_tables() -> None:
    x = Effects(0, 0, 0, 0, gaps=0.4).apply(draws(500), np.random.default_rng(0).normal(size=(500, 200, 8)))
    with_gaps = np.isnan(x).any((1, 2)).mean()
    assert with_gaps == pytest.approx(0.4, abs=0.1)
    assert np.isnan(x).mean(1).max() < 0.65


def test_categories_have_two_to_ten_values() -> None:
    x = Effects(0, 0, 0, 1, 0).apply(draws(200), np.random.default_rng(0).normal(size=(200, 100, 4)))
    numbers = [len(np.unique(column)) for table in x for column in table.T]
    assert min(numbers) == 2
    assert max(numbers) == 10
    unchanged = Effects(0, 0, 0, 0, 0).apply(draws(5), np.random.default_rng(0).normal(size=(5, 100, 4)))
    assert len(np.unique(unchanged[0, :, 0])) == 100


def test_trees_against_a_walk_from_the_root() -> None:
    """Each tree's leaves are found again by its splits: rows of one leaf share the outcome of all of them."""
    x = np.random.default_rng(0).normal(size=(6, 50, 3))
    found = structures.tree_scores(draws(6), x, 2)
    again = draws(6)
    inner, leaves = 2**structures.DEPTH - 1, 2**structures.DEPTH
    u = again.uniform(2 + 2 * structures.TREES * inner)
    values = again.normal(structures.TREES, leaves, 2)
    for t in range(6):
        number, depth = 1 + int(structures.TREES * u[t, 0]), 1 + int(structures.DEPTH * u[t, 1])
        split = [int(3 * v) for v in u[t, 2 : 2 + structures.TREES * inner]]
        at = [int(50 * v) for v in u[t, 2 + structures.TREES * inner :]]
        for r in range(50):
            total = np.zeros(2)
            for tree in range(number):
                node = 0
                for _ in range(depth):
                    which = tree * inner + node
                    column = split[which]
                    node = 2 * node + (2 if x[t, r, column] > x[t, at[which], column] else 1)
                total += values[t, tree, node - (2**depth - 1)]
            assert found[t, r] == pytest.approx(total)


def test_units_against_a_loop() -> None:
    inputs = np.random.default_rng(0).normal(size=(3, 30, 2))
    nets = structures.Networks.draw(draws(3))
    units = nets.units(inputs)
    functions = [lambda v: np.tanh(1.5 * v), lambda v: v, lambda v: max(v, 0), lambda v: np.sin(2 * v),
                 lambda v: v * v - 1, np.sign]  # fmt: skip
    for t in range(3):
        values = inputs[t]
        for layer in range(structures.LAYERS):
            before = values @ nets.weights[t, layer, : values.shape[1]]
            values = np.zeros_like(before)
            for unit in range(structures.UNITS):
                column = before[:, unit] - before[:, unit].mean()
                column = column / (column.std() if column.std() > 1e-9 else 1)
                kind = sum(nets.kinds[t, layer, unit] >= end for end in np.cumsum(structures.FUNCTIONS)[:-1])
                values[:, unit] = [functions[kind](v) for v in column]
            np.testing.assert_allclose(units[t, :, layer], values, atol=1e-9)


def test_roots_are_standardised() -> None:
    causes = structures.roots(draws(20), 100, clustered=0.5)
    np.testing.assert_allclose(causes.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(causes.std(1), 1)


def test_constant_scores_still_give_two_classes() -> None:
    y = classes(draws(8), np.zeros((8, 40, 5)), most=5, imbalance=0, ordered=0, flipped=0)
    assert all(len(np.unique(row)) >= 2 for row in y)


def test_ordered_classes_are_intervals_of_the_score() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 60, 6))
    y = classes(draws(50), scores, most=6, imbalance=0.5, ordered=1, flipped=0)
    for labels, score in zip(y, scores[..., 0], strict=True):
        assert (np.diff(labels[score.argsort()]) != 0).sum() == len(np.unique(labels)) - 1


def test_the_first_row_of_each_class_comes_first() -> None:
    y = np.array([[1, 1, 0, 1, 2, 0]])
    assert first_of_each(y).tolist() == [[0, 2, 4, 1, 3, 5]]
    assert ranks(np.array([[3.0, 1.0, 2.0]])).tolist() == [[2, 0, 1]]


def test_regression_predicts_the_standardised_score() -> None:
    family = construct(composed("task=tabular/prior_regression")["task"], seed=0)
    y = torch.cat([family.batch("train", range(8 * i, 8 * i + 8)).query.y for i in range(40)]).flatten()
    assert abs(y.mean()) < 0.1
    assert 0.9 < y.std() < 1.2
    assert family.batch("train", [0]).query.y.shape == (1, 32, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": [5, 2]}, r"task\.columns=\[5, 2\]: two numbers"),
        ({"columns": [1, 15]}, r"at most 20 together"),
        ({"causal": 0, "networks": 0, "trees": 0}, r"are all 0"),
        ({"skewed": 0.9}, r"more than 1"),
        ({"least_shot": 5}, r"task\.least_shot=5 rows cannot hold"),
        ({"shot": 5}, r"task\.least_shot=10 is more than the 5"),
        ({"way": 1}, r"at least 2 classes"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        task(**changes)
