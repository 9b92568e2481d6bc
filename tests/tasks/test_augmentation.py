"""Random changes of meta-training images: exact, the same for the same task, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarun.tasks.class_data import ClassData
from metarun.tasks.vision.base import ImageFewShot, jittered, shifted
from metarun.types import SPLITS


def family(seed: int = 0, query: int = 3, channels: int = 3, **changes) -> ImageFewShot:
    x = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (60, channels, 7, 6), dtype=np.uint8))
    data = ClassData(x, 10 * np.arange(7), list("abcdef"))
    classes = dict.fromkeys(SPLITS, range(6))
    task = ImageFewShot(data, classes, seed=seed, way=3, shot=2, query=query)
    for name, value in changes.items():
        setattr(task, name, value)
    return task


EVERYTHING = {"crop": 2, "flip": True, "jitter": 0.4, "augment": 0.1}


def test_an_image_is_moved_and_mirrored_as_padding_cropping_and_mirroring_do() -> None:
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 40, 3, 7, 6), dtype=np.uint8))
    shifts = torch.from_numpy(np.random.default_rng(2).integers(-2, 3, (2, 40, 2)))
    mirrored = torch.from_numpy(np.random.default_rng(3).random((2, 40)) < 0.5)
    for flips in (None, mirrored):
        got = shifted(x, shifts, flips, 2)
        assert got.dtype == torch.uint8
        for t in range(2):
            for i in range(40):
                padded = torch.zeros(3, 11, 10, dtype=torch.uint8)
                padded[:, 2:9, 2:8] = x[t, i]
                top, left = (2 + shifts[t, i]).tolist()
                expected = padded[:, top : top + 7, left : left + 6]
                expected = expected.flip(2) if flips is not None and flips[t, i] else expected
                assert torch.equal(got[t, i], expected)


def test_colours_are_multiplied_in_order() -> None:
    """One pixel by hand: red 100, green 50, blue 200; brightness 1.2, contrast .5 about the mean, saturation .5."""
    x = torch.tensor([100, 50, 200], dtype=torch.uint8).view(1, 1, 3, 1, 1).expand(1, 1, 3, 4, 4)
    got = jittered(x, torch.tensor([[[1.2, 0.5, 0.5]]]))[0, 0, :, 0, 0]
    bright = [v / 255 * 1.2 for v in (100, 50, 200)]

    def grey(rgb):
        return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]

    less = [grey(bright) + 0.5 * (v - grey(bright)) for v in bright]
    expected = [grey(less) + 0.5 * (v - grey(less)) for v in less]
    assert torch.allclose(got, torch.tensor(expected))
    one = torch.ones(1, 1, 3)
    assert torch.allclose(jittered(x, one), x / 255)
    assert jittered(x, 3 * one).max() == 1
    grey_image = torch.full((1, 1, 1, 2, 2), 51, dtype=torch.uint8)
    assert torch.allclose(jittered(grey_image, torch.tensor([[[2.0, 1.0, 0.0]]])), torch.tensor(0.4))


@pytest.mark.parametrize("changes", [{k: v} for k, v in EVERYTHING.items()] + [EVERYTHING], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_task_is_changed_the_same_and_others_differently(changes: dict, channels: int) -> None:
    plain, task = family(channels=channels), family(channels=channels, **changes)
    first = task.batch("train", [5, 6, 7])
    for part in ("support", "query"):
        x = getattr(first, part).x
        again = getattr(family(channels=channels, **changes).batch("train", [6]), part).x  # alone, by another process
        assert torch.equal(x[1:2], again)
        assert not torch.equal(x[1].float(), getattr(plain.batch("train", [6]), part).x[0].float())
        assert x.shape == getattr(plain.batch("train", [5, 6, 7]), part).x.shape
        assert torch.equal(getattr(first, part).y, getattr(plain.batch("train", [5, 6, 7]), part).y)
    for split in ("val", "test"):
        assert torch.equal(task.batch(split, [5]).query.x, plain.batch(split, [5]).query.x)
    other = family(seed=1, channels=channels, **changes)
    other.draw = task.draw  # the same images, another seed
    assert not torch.equal(other.augmented(plain.batch("train", [5]).support.x, [5]),
                           task.augmented(plain.batch("train", [5]).support.x, [5]))  # fmt: skip


def test_how_often_and_how_far() -> None:
    task = family(crop=2, flip=True)
    x = torch.zeros(300, 5, 1, 9, 9, dtype=torch.uint8)
    x[..., 4, 3] = 255  # beside the middle: tells mirrored from moved
    seen = task.augmented(x, range(300)).flatten(0, 2).flatten(1).argmax(1)
    rows, columns = seen // 9, seen % 9
    assert torch.bincount(rows, minlength=9)[[0, 1, 7, 8]].sum() == 0
    assert torch.bincount(rows, minlength=9)[2:7].min() > 240  # of 300 expected
    # Moved by -2..2 and mirrored in half of the cases: columns 1..5 and 3..7.
    counts = torch.bincount(columns, minlength=9)
    assert (counts[1:8] > 0).all()
    assert counts[[0, 8]].sum() == 0
    assert abs(int(counts[1:3].sum()) - int(counts[6:8].sum())) < 120
    factors = family(jitter=0.4).augmented(torch.full((300, 5, 1, 2, 2), 100, dtype=torch.uint8), range(300))
    assert 0.59 * 100 / 255 < factors.min() < 0.61 * 100 / 255
    assert 1.39 * 100 / 255 < factors.max() < 1.41 * 100 / 255


def test_without_queries_support_and_query_stay_one() -> None:
    batch = family(query=0, **EVERYTHING).batch("train", [0])
    assert batch.query is batch.support


def test_nothing_asked_for_leaves_bytes_and_the_protocol_says_what_is_done() -> None:
    assert family().batch("train", [0]).support.x.dtype == torch.uint8
    assert family(crop=2, flip=True).batch("train", [0]).support.x.dtype == torch.uint8
    assert family(crop=2, flip=True, jitter=0.4).augmentation("crop", "flip", "jitter") == {
        "crop": 2,
        "flip": True,
        "jitter": 0.4,
    }


def test_on_the_meta_device() -> None:
    task = family(**EVERYTHING)
    task.to(torch.device("meta"))
    assert task.batch("train", [0, 1]).support.x.device.type == "meta"
