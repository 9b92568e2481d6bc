"""Learning histories of random steps, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metarun.tasks.episode import Spec
from metarun.tasks.rl.histories import columns, write


def random_histories(folder: Path, spec: Spec, steps: int) -> Path:
    """Write a history of two streams, in episodes of one step, to a folder and return it."""
    rows = np.random.default_rng(0).random((2, steps, sum(columns(spec)))).astype(np.float32)
    if spec.discrete_actions:
        rows[:, :, columns(spec)[0]] = np.arange(steps) % spec.output_size
    write(folder, 0, rows, spec, 1)
    return folder
