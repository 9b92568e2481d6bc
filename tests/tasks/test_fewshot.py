"""Episodes: pure functions of (seed, split, index), disjoint support and query, classes of the split only."""

import copy

import numpy as np
import pytest
import torch

from metarun.errors import UserError
from metarun.tasks.class_data import ClassData
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.fewshot import FewShot
from metarun.tasks.splits import split_classes
from metarun.types import Split


class Numbers(FewShot):
    """Examples are their own row number, so that an episode tells where it came from."""

    modality = "vector"


SIZES = np.array([7, 9, 12, 8] * 6)


def numbers(
    seed: int = 0,
    way: int = 3,
    shot: int = 2,
    query: int = 4,
    test_ways: tuple[int, ...] = (5,),
    unknown: int = 0,
    outside: dict[Split, np.ndarray] | None = None,
) -> Numbers:
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    data = ClassData(torch.arange(offsets[-1])[:, None], offsets, [f"c{i}" for i in range(len(SIZES))])
    classes = {"train": range(12), "val": range(12, 16), "test": range(16, 24)}
    shape = {"way": way, "shot": shot, "query": query, "test_ways": test_ways, "unknown": unknown}
    return Numbers(data, classes, seed=seed, outside=outside, **shape)


def tensors(batch):
    return [batch.support.x, batch.support.y, batch.query.x, batch.query.y]


def class_of(rows: torch.Tensor) -> np.ndarray:
    return np.searchsorted(np.cumsum(SIZES), rows.numpy(), side="right")


def test_an_episode_does_not_depend_on_its_batch():
    task = numbers()
    together = tensors(task.batch("train", [3, 4]))
    apart = [torch.cat(pair) for pair in zip(*(tensors(task.batch("train", [i])) for i in (3, 4)), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_episodes_differ_by_seed_split_and_index():
    here = numbers().batch("train", [0]).support.x
    assert not torch.equal(here, numbers().batch("train", [1]).support.x)
    assert not torch.equal(here, numbers(seed=1).batch("train", [0]).support.x)
    assert torch.equal(here, numbers().batch("train", [0]).support.x)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_support_and_query_are_disjoint_and_of_the_splits_classes(split):
    task = numbers()
    batch = task.batch(split, range(50))
    for sx, sy, qx, qy in zip(*tensors(batch), strict=True):
        rows = torch.cat([sx, qx])[:, 0]
        assert len(set(rows.tolist())) == 3 * (2 + 4)
        assert sy.tolist() == [0, 0, 1, 1, 2, 2]
        assert qy.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        classes = class_of(rows)
        labels = torch.cat([sy, qy]).numpy()
        pairs = set(zip(labels.tolist(), classes.tolist(), strict=True))
        assert len(pairs) == len({c for _, c in pairs}) == 3  # a label is one class, a class one label
        assert set(classes) <= set(task.classes[split])


def test_every_class_and_example_is_drawn():
    rows = torch.cat(
        [part.x.flatten() for part in (lambda b: (b.support, b.query))(numbers().batch("val", range(300)))]
    )
    low, high = SIZES[:12].sum(), SIZES[:16].sum()
    assert set(rows.tolist()) == set(range(low, high))


def test_a_label_says_nothing_of_the_class():
    drawn, _ = numbers().rows("val", range(900), EpisodeShape(3, 1, 1))
    for label in range(3):
        _, counts = np.unique(drawn[:, label], return_counts=True)
        assert len(counts) == 4
        assert counts == pytest.approx(225, abs=50)  # of 4 classes in 900 episodes; 13 is the deviation
    orders = {tuple(np.argsort(episode)) for episode in drawn}
    assert len(orders) == 6


def test_other_shapes_and_variants():
    task = numbers()
    batch = task.batch("test", [0, 1], EpisodeShape(6, 1, 3))
    assert batch.support.x.shape == (2, 6, 1)
    assert batch.query.x.shape == (2, 18, 1)
    assert batch.query.way == 6
    assert task.variants() == {"": EpisodeShape(3, 2, 4), "_5way": EpisodeShape(5, 2, 4)}


def test_runs_on_meta_and_leaves_a_copied_task_where_it_is():
    original = numbers()
    task = copy.copy(original).to(torch.device("meta"))
    assert original.batch("train", [0]).support.x.device.type == "cpu"
    assert all(tensor.device.type == "meta" for tensor in tensors(task.batch("train", [0, 1])))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"way": 1}, "way=1"),
        ({"way": 5, "test_ways": ()}, "way=5 is more than the 4 classes of the 'val' split"),
        ({"test_ways": (9,)}, "way=9 is more than the 8 classes of the 'test' split"),
        ({"way": 3, "unknown": 2}, "task.way=3 + unknown=2 is more than the 4 classes of the 'val' split"),
        ({"shot": 5, "query": 3}, "shot=5 + query=3 is more than the 7 examples of class 'c0'"),
    ],
)
def test_impossible_episodes_are_refused(given, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        numbers(**given)
    assert words in str(error.value)


def test_unknown_queries_are_of_other_classes_and_change_nothing_else():
    with_unknown, without = numbers(unknown=1, test_ways=()), numbers(test_ways=())
    for split in ("val", "test"):
        found, plain = (task.batch(split, range(60)) for task in (with_unknown, without))
        assert plain.unknown is None
        assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(plain), strict=True))
        assert found.unknown.shape == (60, 4, 1)
        others = set()
        for support, rows in zip(found.support.x[..., 0], found.unknown[..., 0], strict=True):
            assert len(set(rows.tolist())) == 4
            (unknown,) = set(class_of(rows))
            assert unknown not in class_of(support)
            others.add(unknown)
        assert others == set(with_unknown.classes[split])
        alone = torch.cat([with_unknown.batch(split, [i]).unknown for i in range(60)])
        assert torch.equal(found.unknown, alone)
    moved = found.map(lambda values: values[:2])
    assert moved.unknown.shape == (2, 4, 1)


def test_unknown_queries_from_outside_the_classes():
    outside = {"train": np.arange(0), "val": np.arange(100, 109), "test": np.arange(120, 140)}
    task = numbers(unknown=2, outside=outside, test_ways=(), way=4)
    for split in ("val", "test"):
        rows = task.batch(split, range(200)).unknown[..., 0]
        assert all(len(set(each.tolist())) == 8 for each in rows) if split == "test" else rows.shape == (200, 8)
        assert set(rows.flatten().tolist()) == set(outside[split])
    with pytest.raises(UserError, match="unknown=3 times 4 queries is more than the 9 examples outside"):
        numbers(unknown=3, outside=outside)


def test_split_classes_is_seeded_disjoint_and_exact_without_groups():
    splits = split_classes(range(50), val=0.1, test=0.2, seed=0)
    assert {name: len(ids) for name, ids in splits.items()} == {"train": 35, "val": 5, "test": 10}
    assert sorted(np.concatenate(list(splits.values()))) == list(range(50))
    again = split_classes(range(50), val=0.1, test=0.2, seed=0)
    assert all((splits[name] == again[name]).all() for name in splits)
    assert (splits["test"] != split_classes(range(50), val=0.1, test=0.2, seed=1)["test"]).any()


def test_split_classes_keeps_groups_whole():
    groups = np.array([9, 9, 9, 4, 4, 1, 1, 7, 8, 3, 2, 2, 5, 6, 0, 0, 0, 10, 11, 12])
    for seed in range(20):
        splits = split_classes(groups, val=0.2, test=0.3, seed=seed)
        homes = [set(groups[ids]) for ids in splits.values()]
        assert homes[0].isdisjoint(homes[1])
        assert homes[0].isdisjoint(homes[2])
        assert homes[1].isdisjoint(homes[2])
        assert sum(map(len, splits.values())) == 20
        assert 3 <= len(splits["val"]) <= 4
        assert 4 <= len(splits["test"]) <= 6


def test_split_fractions_that_leave_nothing_are_refused():
    with pytest.raises(UserError, match=r"task\.val=0\.5 \+ task\.test=0\.5"):
        split_classes(range(10), val=0.5, test=0.5, seed=0)


def test_named_labels_are_the_numbers_of_the_splits_classes():
    task = numbers()
    task.classes["train"] = np.array([7, 2, 11, 4])  # in no order
    batch = task.batch("train", range(20), EpisodeShape(3, 2, 1, named=True))
    for part, each in ((batch.support, 2), (batch.query, 1)):
        assert part.way == 4
        assert part.y.shape == (20, 3 * each)
        assert (task.classes["train"][part.y.numpy()] == class_of(part.x[..., 0])).all()
    plain = task.batch("train", range(20), EpisodeShape(3, 2, 1))
    assert torch.equal(plain.support.x, batch.support.x)
    assert task.spec.train_classes == 12


def test_identical_examples_of_a_class_and_of_several_splits_are_counted():
    task = numbers()
    assert task.remarks() == []
    rows = task.data.offsets[[0, 0, 20]] + [0, 3, 1]  # two of class 0, one of the test class 20
    task.data.x[rows] = -1
    within, across = task.remarks()
    assert within.startswith("Numbers: 2 of 216 examples have a duplicate in their class")
    assert "too high" not in within
    assert across == "Numbers: 1 examples of the test classes are also in other splits"
    task.data.x[:100] = -1
    assert "too high" in task.remarks()[0]
