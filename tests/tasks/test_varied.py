"""Episodes of varied size: the laws of way, query, support set and class sizes, and balanced episodes as a special
case.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor, log

import numpy as np
import pytest
import torch

from metarun.errors import UserError
from metarun.tasks.class_data import ClassData
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.fewshot import FewShot
from metarun.tasks.rng import uniforms
from metarun.tasks.varied import Composition, VariedEpisodes, choose_rows, composition, varied_batch
from metarun.types import Split


class Numbers(FewShot):
    """Examples are their own row number."""

    modality = "vector"


VARIED = EpisodeShape(5, 1, 4, varied=True)
SPLITS: dict[Split, range] = {"train": range(60), "val": range(60, 70), "test": range(70, 90)}


def family(sizes: np.ndarray | int = 300, seed: int = 0, unknown: int = 0, **limits: int) -> Numbers:
    every = np.broadcast_to(sizes, 90)
    offsets = np.concatenate([[0], np.cumsum(every)])
    data = ClassData(torch.arange(offsets[-1])[:, None], offsets, [f"c{i}" for i in range(90)])
    task = Numbers(data, SPLITS, seed=seed, way=5, shot=1, query=1, episodes="varied", unknown=unknown)
    task.sampling = VariedEpisodes(**limits)  # type: ignore[arg-type]
    return task


def test_the_published_limits() -> None:
    published = VariedEpisodes(
        min_way=5, max_way=50, max_query=10, max_support=500, max_contribution=100, log_weight=log(2)
    )
    assert published == VariedEpisodes()


@pytest.mark.parametrize(("split", "classes"), [("train", 60), ("val", 10), ("test", 20)])
def test_ways_are_uniform_from_5_to_50_or_all_classes(split: Split, classes: int) -> None:
    task, most = family(), min(50, classes)
    n = 30 * (most - 4)
    ways = np.array([composition(task, split, index, VARIED).way for index in range(n)])
    counts = np.bincount(ways, minlength=most + 1)
    assert (ways.min(), ways.max(), counts[:5].sum()) == (5, most, 0)
    expected = n / (most - 4)
    chi_squared, freedom = float(((counts[5:] - expected) ** 2 / expected).sum()), most - 5
    assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5


def test_queries_are_at_most_ten_and_half_of_the_smallest_class() -> None:
    sizes = np.array([300, 40, 17, 6, 2, 25] * 15)
    task = family(sizes)
    for index in range(200):
        found = composition(task, "train", index, VARIED)
        drawn = task.draw("train", [index], found.way)[0]
        assert found.query == min(10, sizes[drawn].min() // 2)
        assert (found.support >= 1).all()
        assert (found.support <= sizes[drawn] - found.query).all()
        assert found.support.sum() <= 500


def published(sizes: list[int], beta: float, alphas: list[float]) -> list[int]:
    """Support examples of each class as the appendix states them, for beta in (0, 1]."""
    q = min(10, min(floor(n / 2) for n in sizes))
    total = min(500, sum(ceil(beta * min(100, n - q)) for n in sizes))
    weights = [n * np.exp(alpha) for n, alpha in zip(sizes, alphas, strict=True)]
    shares = [weight / sum(weights) for weight in weights]
    return [min(floor(share * (total - len(sizes))) + 1, n - q) for share, n in zip(shares, sizes, strict=True)]


def test_class_sizes_are_those_of_the_appendix_given_its_random_numbers() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        sizes = random.integers(2, 700, size=random.integers(5, 51))
        u = random.random(VariedEpisodes().draws)
        u[0] = (len(sizes) - 5 + 0.5) / 46  # this way of 5..50
        found = VariedEpisodes().compose(u, 1000, lambda way, sizes=sizes: sizes[:way])  # type: ignore[misc]
        alphas = [log(0.5) + (log(2) - log(0.5)) * v for v in u[2 : 2 + len(sizes)]]
        assert found.support.tolist() == published(sizes.tolist(), float(u[1]) or 1.0, alphas)


def test_support_sets_follow_the_published_law() -> None:
    """Against the appendix simulated with other random numbers: sizes of the support set, and of its classes."""
    task, n = family(40), 1000
    found = [composition(task, "val", index, VARIED) for index in range(n)]
    random = np.random.default_rng(1)
    simulated = []
    for _ in range(n):
        way = random.integers(5, 11)
        alphas = random.uniform(log(0.5), log(2), size=way).tolist()
        simulated.append(published([40] * way, 1 - random.random(), alphas))
    for of_found, of_simulated in (
        ([float(each.support.sum()) for each in found], [float(sum(each)) for each in simulated]),
        ([float(each.support.max() / each.support.mean()) for each in found],
         [max(each) / float(np.mean(each)) for each in simulated]),
        ([float((each.support == 1).mean()) for each in found],
         [each.count(1) / len(each) for each in simulated]),
    ):  # fmt: skip
        grid = np.quantile(of_simulated, np.linspace(0.05, 0.95, 19))
        ours, theirs = (np.searchsorted(np.sort(x), grid, side="right") / n for x in (of_found, of_simulated))
        assert np.abs(ours - theirs).max() < 1.63 * (2 / n) ** 0.5  # Kolmogorov-Smirnov at 1 %


def test_a_large_class_has_more_support_examples() -> None:
    sizes = np.array([400, 20] * 45)
    task = family(sizes)
    big, small = [], []
    for index in range(300):
        found = composition(task, "train", index, VARIED)
        drawn = task.draw("train", [index], found.way)[0]
        big += found.support[sizes[drawn] == 400].tolist()
        small += found.support[sizes[drawn] == 20].tolist()
    assert np.mean(big) > 3 * np.mean(small)


@pytest.mark.parametrize("query", [1, 4, 10])
def test_a_balanced_episode_is_a_special_case_to_the_bit(query: int) -> None:
    task = family(np.array([31, 20, 57] * 30), max_way=5, max_contribution=1, max_query=query)
    found = task.batch("test", range(40), VARIED)
    plain = task.batch("test", range(40), EpisodeShape(5, 1, query))
    for a, b in ((found.support, plain.support), (found.query, plain.query)):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert a.way == b.way
    for shot in (2, 7):
        drawn, rows = task.rows("test", [3], EpisodeShape(5, shot, query))
        u = uniforms(0, "test", [3], 5 * (shot + query), stream=1)[0]
        sizes = Composition(np.full(5, shot), query)
        support, queries = choose_rows(u, task.data.sizes[drawn[0]], task.data.offsets[drawn[0]], sizes)
        assert support.tolist() == rows[0, :, :shot].flatten().tolist()
        assert queries.tolist() == rows[0, :, shot:].flatten().tolist()


def test_groups_hold_every_task_once_and_each_as_it_is_alone() -> None:
    task = family(30, max_way=6, max_contribution=2)
    seen: list[int] = []
    for places, batch in task.batches("val", range(100, 140)):
        assert isinstance(places, list)
        seen += places
        for row, place in enumerate(places):
            alone = task.batch("val", [100 + place])
            for part, own in ((batch.support, alone.support), (batch.query, alone.query)):
                assert torch.equal(part.x[row], own.x[0])
                assert torch.equal(part.y[row], own.y[0])
            rows, labels = alone.support.x[0, :, 0], alone.support.y[0]
            both = torch.cat([rows, alone.query.x[0, :, 0]]).tolist()
            assert len(set(both)) == len(both)
            assert labels.unique().tolist() == list(range(alone.support.way))
            homes = {int(label): {row // 30 for row in rows[labels == label].tolist()} for label in labels.unique()}
            assert all(len(home) == 1 and home <= {*SPLITS["val"]} for home in homes.values())
    assert sorted(seen) == list(range(40))
    with pytest.raises(UserError, match="tasks of different sizes"):
        varied_batch(task, "val", range(100, 140), VARIED)


def test_unknown_queries_of_varied_episodes() -> None:
    task, plain = family(30, unknown=2), family(30)
    for index in range(30):
        found, without = (t.batch("test", [index]) for t in (task, plain))
        assert found.unknown is not None
        known = {row // 30 for row in found.support.x.flatten().tolist()}
        unknown = {row // 30 for row in found.unknown.flatten().tolist()}
        assert len(unknown) == 2
        assert not known & unknown
        assert len(known) <= 18
        if found.support.way == without.support.way:
            assert torch.equal(found.support.x, without.support.x)


def test_too_few_classes_or_examples_are_refused() -> None:
    offsets = np.arange(13) * 3
    data = ClassData(torch.arange(36)[:, None], offsets, [f"c{i}" for i in range(12)])
    splits: dict[Split, range] = {"train": range(4), "val": range(4, 8), "test": range(8, 12)}
    shape = {"way": 2, "shot": 1, "query": 1, "episodes": "varied"}
    with pytest.raises(UserError, match=r"task\.episodes=varied needs 5 classes; the 'train' split of Numbers has 4"):
        Numbers(data, splits, seed=0, **shape)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs 2 examples of each class; class 'c0' has 1"):
        family(1)


def test_other_shapes_are_balanced() -> None:
    assert VARIED.changed() == VARIED
    assert VARIED.changed(way=20) == replace(VARIED, way=20, varied=False)
