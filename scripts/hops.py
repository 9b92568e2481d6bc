"""Count the functions of metarun that one outer step enters, from the drawn meta-batch to the optimizer's step.

    python scripts/hops.py task=regression/sinusoid algorithm=maml

Comprehensions and generators count as functions, as Python before 3.12 enters them. The second step is counted, since
the first one of a run also prepares what the others use.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import metarun
from metarun.config.build import build
from metarun.config.compose import compose

PACKAGE = Path(metarun.__file__).parent


def entered(step: Callable[[], object]) -> dict[str, list[str]]:
    """Return the functions of metarun that ``step`` enters, by file."""
    found: dict[str, dict[str, None]] = defaultdict(dict)

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            found[str(path.relative_to(PACKAGE))][frame.f_code.co_qualname] = None

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return {path: [*names] for path, names in found.items()}


def main() -> None:
    experiment = build(compose([*sys.argv[1:], "runner.device=cpu"]).config)
    algorithm, task = experiment.algorithm, experiment.task
    batch = task.batch("train", range(experiment.runner.meta_batch), algorithm.train_shape(task.shape))
    for name, step in (("plain", algorithm.meta_step), ("the engine's", experiment.engine.meta_step)):
        step(batch, 0)
        found = entered(lambda step=step: step(batch, 1))  # type: ignore[misc]
        for path, functions in found.items():
            print(f"{path}\n    {', '.join(functions)}")
        print(f"{name} step: {sum(map(len, found.values()))} functions in {len(found)} files\n")


if __name__ == "__main__":
    main()
