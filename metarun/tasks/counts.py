"""Episode sizes that are drawn at random and shared by all tasks of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metarun.errors import require
from metarun.tasks.rng import uniforms
from metarun.types import Split


def shared_count(
    seed: int, split: Split, indices: Sequence[int], least: int, most: int, *, together: int, stream: int
) -> int:
    """Draw a number of points, uniform in ``least..most``, that all tasks of a batch share.

    Args:
        seed: Seed of the family.
        split: Split of the tasks.
        indices: Numbers of the tasks in the batch.
        least: Smallest number of points.
        most: Largest number of points.
        together: Number of consecutive tasks with the same count: task i uses draw ``i // together``.
        stream: Random stream of the draw.

    Returns:
        The number of points.

    Raises:
        UserError: The tasks of the batch belong to groups with different counts.
    """
    groups = sorted({i // together for i in indices})
    counts = least + np.floor((most - least + 1) * uniforms(seed, split, groups, 1, stream))
    require(
        bool((counts == counts[0]).all()),
        f"task.together={together}: tasks {min(indices)} to {max(indices)} of one batch have different numbers of "
        "points; choose runner.meta_batch and runner.eval_batch that divide it, or a fixed number of points",
    )
    return int(counts[0, 0])
