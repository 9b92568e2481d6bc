"""Speeds in steps per second of several ways to do the same, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich import box
from rich.table import Table


@dataclass
class Speed:
    """Speed of one way to take steps, in steps per second with one sample per round."""

    name: str
    about: str
    run: Callable[[], int]
    """Takes steps and returns their number."""
    samples: list[float] = field(default_factory=list)

    def ratios(self, base: Speed) -> list[float]:
        """Return the speed relative to ``base`` in each round."""
        return [own / other for own, other in zip(self.samples, base.samples, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Return the samples for the JSON file."""
        return {"name": self.name, "what": self.about, "steps_per_s": self.samples, "median": median(self.samples)}


def sample(speeds: Sequence[Speed], rounds: int) -> None:
    """Add a sample to each speed in each round, in turn, after a round that warms up."""
    for number in range(rounds + 1):
        for speed in speeds:
            start = time.perf_counter()
            steps = speed.run()
            if number:
                speed.samples.append(steps / (time.perf_counter() - start))


def speed_table(title: str, speeds: Sequence[Speed], base: str, related: Collection[Speed]) -> Table:
    """Return a table of speeds, with the median ratio to that named ``base`` for those that are ``related`` to it."""
    result = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", collapse_padding=True)
    for heading in ("", "median", "lowest", "highest", f"of {base}", "what"):
        result.add_column(heading, justify="right" if heading not in ("", "what") else "left")
    (other,) = (speed for speed in speeds if speed.name == base)
    for speed in speeds:
        numbers = (median(speed.samples), min(speed.samples), max(speed.samples))
        ratio = f"{median(speed.ratios(other)):.3g}" if speed in related else ""
        result.add_row(speed.name, *(f"{number:,.4g}" for number in numbers), ratio, speed.about)
    return result
