"""Sizes of episodes that are drawn at random, the same for all tasks of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metarun.errors import require
from metarun.tasks.rng import uniforms
from metarun.types import Split


def shared_count(
    seed: int, split: Split, indices: Sequence[int], least: int, most: int, *, together: int, stream: int
) -> int:
    """A number of points, uniform between ``least`` and ``most``, of which the tasks of a batch have as many.

    ``together`` tasks in a row share it: task i has that of number i // ``together``.
    """
    groups = sorted({i // together for i in indices})
    counts = least + np.floor((most - least + 1) * uniforms(seed, split, groups, 1, stream))
    require(
        bool((counts == counts[0]).all()),
        f"task.together={together}: tasks {min(indices)} to {max(indices)} have different numbers of points; "
        "runner.meta_batch and runner.eval_batch must divide it, or the least number be the largest",
    )
    return int(counts[0, 0])
