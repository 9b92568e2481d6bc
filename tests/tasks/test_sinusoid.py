"""Sinusoids: what a task is, whatever its frequency, and what is tested."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarun.errors import UserError
from metarun.tasks.regression.sinusoid import Sinusoid


def family(frequency: tuple[float, float], test_shots: tuple[int, ...] = ()) -> Sinusoid:
    return Sinusoid(3, shot=5, query=4, test_shots=test_shots, frequency=frequency)


@pytest.mark.usefixtures("float64")
def test_the_frequency_alone_differs() -> None:
    indices = range(400)
    amplitude, phase, _ = family((1.0, 1.0)).curves("train", indices)
    varied = family((0.8, 1.2)).curves("train", indices)
    assert np.array_equal(varied[0], amplitude)
    assert np.array_equal(varied[1], phase)
    assert 0.8 <= varied[2].min() < 0.81 < 1.19 < varied[2].max() <= 1.2
    for low, high, frequency in ((1.0, 1.0, 1.0), (0.8, 1.2, varied[2]), (2.0, 2.0, 2.0)):
        support = family((low, high)).batch("train", indices).support
        expected = amplitude * np.sin(frequency * support.x[..., 0].numpy() - phase)
        assert torch.allclose(support.y[..., 0], torch.from_numpy(expected), atol=1e-12)


def test_further_shots_are_tested_on_the_same_tasks() -> None:
    task = family((1.0, 1.0), (5, 10))
    shapes = task.variants()
    assert list(shapes) == ["", "_10shot"]
    batch = task.batch("test", range(2), shapes["_10shot"])
    assert batch.support.x.shape == (2, 10, 1)
    assert batch.query.x.shape == (2, 4, 1)


def test_a_range_from_large_to_small() -> None:
    with pytest.raises(UserError, match=r"task\.frequency=\[2\.0, 1\.0\]: the smallest and the largest are needed"):
        family((2.0, 1.0))
