"""Physical constants that differ from task to task, and what families with such constants share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.rl.base import Environment
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner


class Constants:
    """Positive constants by name, each log-uniform between the two ends of its range.

    With ``extrapolate`` x > 0 those of meta-test tasks lie outside instead: beyond either end, by at most x times the
    range's own width (in logarithms). A range whose ends are equal is a constant everywhere.
    """

    def __init__(self, ranges: Mapping[str, Sequence[float]], extrapolate: float) -> None:
        for name, ends in ranges.items():
            require(
                len(ends) == 2 and ends[0] <= ends[1],
                f"task.{name}={list(ends)}: a range is [least, greatest]; for a single value write it twice",
            )
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
        self.extrapolate = extrapolate

    def protocol(self) -> dict[str, object]:
        return {**self.ranges, "extrapolate": self.extrapolate}

    def draw(self, seed: int, split: Split, indices: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Those of each task, [T]."""
        place = uniforms(seed, split, indices, len(self.ranges))
        if split == "test" and self.extrapolate:
            beyond = self.extrapolate * (2 * place - 1)
            place = np.where(beyond < 0, beyond, 1 + beyond)
        return {name: low * (high / low) ** place[:, i] for i, (name, (low, high)) in enumerate(self.ranges.items())}

    def tensors(self, seed: int, split: Split, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Those of each task, [T, 1]."""
        drawn = self.draw(seed, split, indices)
        return {name: to_device(x, device, torch.get_default_dtype())[:, None] for name, x in drawn.items()}


def signs(share: float, seed: int, split: Split, indices: Sequence[int], like: Tensor) -> Tensor:
    """-1 in a ``share`` of the tasks and 1 in the others, [T, 1], of the type and on the device of ``like``."""
    turned = uniforms(seed, split, indices, 1, stream=1) < share
    return to_device(1.0 - 2.0 * turned, like.device, like.dtype)


@torch.no_grad()
def played(env: Environment, act: Callable[[Tensor, torch.Generator | None], Tensor], copies: int) -> float:
    """The mean return of a trial of ``act``, which sees states [T, E, ...]; it plays ``copies`` episodes a task."""
    generator = env.generator()
    state = env.reset(copies, generator)
    total, running = (
        torch.zeros(state.shape[:2], device=env.device),
        torch.ones(state.shape[:2], device=env.device).bool(),
    )
    for _ in range(env.horizon):
        state, reward, ended = env.step(state, act(state, generator), generator)
        total = total + torch.where(running, reward, 0.0)
        running = running & ~ended
    return env.episodes * float(total.mean())


def traces(task: Task, learner: RLLearner, quantity: Callable[[Tensor], Tensor], name: str) -> Figure:
    """Four test tasks: a ``quantity`` of the observation over the first and the last episode that is shown."""
    from matplotlib.figure import Figure

    env: Environment = task.batch("test", range(4))
    stages = list(learner.rollouts(env))
    first, last = stages[0].episode(0, env.horizon), stages[-1].episode(-1, env.horizon)
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for number, ax in enumerate(figure.subplots(1, 4, sharex=True, sharey=True)):
        for rollout, colour, label in ((first, "tab:blue", "first"), (last, "tab:red", "last")):
            for copy in range(min(3, rollout.observation.shape[1])):
                steps = int(rollout.running[number, copy].sum())
                line = quantity(rollout.observation[number, copy, :steps].cpu())
                ax.plot(line, color=colour, lw=0.9, alpha=0.8, label=label if copy == 0 else None)
        ax.set(xlim=(0, env.horizon), xlabel="step")
    figure.axes[0].set_ylabel(name)
    figure.axes[0].legend(fontsize=7, title="episode")
    figure.suptitle("Physics of the meta-test split, which the policy is not told")
    return figure
