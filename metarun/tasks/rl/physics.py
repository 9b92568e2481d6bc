"""Physical constants that differ between tasks, and helpers of the families that use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
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
    """Positive physical constants, each log-uniform within its range.

    Args:
        ranges: Smallest and largest value of each constant; equal ends fix it.
        extrapolate: If x > 0, constants of meta-test tasks lie outside the range: beyond either end by at most x times
            the width of the range, in logarithms.
    """

    def __init__(self, ranges: Mapping[str, Sequence[float]], extrapolate: float) -> None:
        for name, ends in ranges.items():
            require(
                len(ends) == 2 and ends[0] <= ends[1],
                f"task.{name}={list(ends)}: give a range [least, greatest]; for a fixed value give it twice",
            )
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
        self.extrapolate = extrapolate

    def protocol(self) -> dict[str, object]:
        return {**self.ranges, "extrapolate": self.extrapolate}

    def draw(self, seed: int, split: Split, indices: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Return the constants of each task, [T] each."""
        place = uniforms(seed, split, indices, len(self.ranges))
        if split == "test" and self.extrapolate:
            beyond = self.extrapolate * (2 * place - 1)
            place = np.where(beyond < 0, beyond, 1 + beyond)
        return {name: low * (high / low) ** place[:, i] for i, (name, (low, high)) in enumerate(self.ranges.items())}

    def tensors(self, seed: int, split: Split, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Return the constants of each task as tensors, [T, 1] each."""
        drawn = self.draw(seed, split, indices)
        return {name: to_device(x, device, torch.get_default_dtype())[:, None] for name, x in drawn.items()}


def signs(share: float, seed: int, split: Split, indices: Sequence[int], like: Tensor) -> Tensor:
    """Return -1 in a ``share`` of the tasks and 1 in the others, [T, 1], with the dtype and device of ``like``."""
    turned = uniforms(seed, split, indices, 1, stream=1) < share
    return to_device(1.0 - 2.0 * turned, like.device, like.dtype)


@torch.no_grad()
def played(env: Environment, act: Callable[[Tensor, torch.Generator | None], Tensor], num_envs: int) -> float:
    """Return the mean trial return of a policy, estimated from ``num_envs`` episodes a task.

    Args:
        env: The environment.
        act: The policy: (state [T, E, ...], generator) -> actions.
        num_envs: Number of parallel environments of each task.
    """
    generator = env.generator()
    state = env.reset(num_envs, generator)
    total, mask = (
        torch.zeros(state.shape[:2], device=env.device),
        torch.ones(state.shape[:2], device=env.device).bool(),
    )
    for _ in range(env.horizon):
        state, reward, terminated = env.step(state, act(state, generator), generator)
        total = total + torch.where(mask, reward, 0.0)
        mask = mask & ~terminated
    return env.episodes * float(total.mean())


def traces(task: Task, learner: RLLearner, quantity: Callable[[Tensor], Tensor], name: str) -> Figure:
    """Plot a quantity of the observation over the first and the last episode, in four test tasks.

    Args:
        task: The family.
        learner: The trained algorithm.
        quantity: Function of observations [S, size] -> [S].
        name: Label of the axis, with its unit.
    """
    from matplotlib.figure import Figure

    env: Environment = task.batch("test", range(4))
    stages = list(learner.rollouts(env))
    first, last = stages[0].episode(0, env.horizon), stages[-1].episode(-1, env.horizon)
    figure = Figure(figsize=(13, 3.5), layout="constrained")
    for number, ax in enumerate(figure.subplots(1, 4, sharex=True, sharey=True)):
        for rollout, look, label in (
            (first, {"color": style.EARLY, "ls": "--"}, "first episode"),
            (last, {"color": style.LATE, "ls": "-"}, "last episode"),
        ):
            for copy in range(min(3, rollout.observation.shape[1])):
                steps = int(rollout.mask[number, copy].sum())
                line = quantity(rollout.observation[number, copy, :steps].cpu())
                ax.plot(line, lw=1, alpha=0.8, label=label if copy == 0 else None, **look)
        ax.set(xlim=(0, env.horizon), xlabel="step", title=f"test task {number + 1}")
        style.counted(ax.xaxis)
    figure.axes[0].set_ylabel(name)
    style.legend(figure, figure.axes[0])
    figure.suptitle("Hidden physics of the meta-test split")
    return figure
