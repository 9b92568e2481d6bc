"""Learning histories on disk: every step that learners of single tasks took, from their first to their last."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import UserError, require
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment, Wrapper
from metarun.untrusted import read_json

FILE = "histories.json"
FORMAT = 1


class HistoryEnv(Wrapper):
    """Records all steps in the E parallel environments of one task, over as many rollouts as a learner takes.

    Its random numbers go on from rollout to rollout, so that a learner does not meet the same noise each time.
    """

    def __init__(self, env: Environment, spec: Spec) -> None:
        super().__init__(env)
        require(env.tasks == 1, "a learning history is of one task")
        self.discrete, self.steps, self.noise = spec.discrete_actions, list[Tensor](), env.generator()

    def generator(self) -> torch.Generator | None:
        return self.noise

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        self.mask = torch.ones(1, num_envs, dtype=torch.bool, device=self.device)
        self.begins = bool(self.steps)
        return super().reset(num_envs, generator)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        observation = self.env.observe(state)
        after, reward, ended = super().step(state, action, generator)
        taken = action[..., None].to(reward.dtype) if self.discrete else action
        done = torch.ones_like(self.mask) if self.begins else ~self.mask
        flags = [each[..., None].to(reward.dtype) for each in (reward * self.mask, self.mask, done)]
        self.steps.append(torch.cat([observation, taken, *flags], -1)[0].cpu())
        self.mask, self.begins = self.mask & ~ended, False
        if (cut := self.env.truncated()) is not None:
            self.mask = self.mask & ~cut
        return after, reward, ended

    def history(self) -> NDArray[np.float32]:
        """Return the recorded steps, [E, S, columns]: observation, action, reward, mask and done, as agents see it.

        Raises:
            UserError: The learner used another number of environments at some time.
        """
        sizes = {len(each) for each in self.steps}
        require(len(sizes) == 1, f"the learner used {sorted(sizes)} environments, and a history needs the same number")
        return torch.stack(self.steps, 1).numpy().astype(np.float32)


def description(spec: Spec) -> dict[str, Any]:
    """Return what the columns of a history depend on."""
    return {
        "format": FORMAT,
        "observation": prod(spec.input_shape),
        "actions": spec.output_size,
        "discrete": spec.discrete_actions,
    }


def columns(spec: Spec) -> list[int]:
    """Return the numbers of columns of observation, action, reward, mask and done."""
    return [prod(spec.input_shape), 1 if spec.discrete_actions else spec.output_size, 1, 1, 1]


def path_of(folder: Path, task: int) -> Path:
    """Return the file with the history of a task."""
    return folder / f"{task:05d}.npy"


def write(folder: Path, task: int, history: NDArray[np.float32], spec: Spec, horizon: int) -> None:
    """Write the history of a task, of episodes of ``horizon`` steps, so that a reader finds the whole file or none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps({**description(spec), "horizon": horizon}) + "\n")
    buffer, path = io.BytesIO(), path_of(folder, task)
    np.save(buffer, history)
    partly = path.with_suffix(f".{os.getpid()}")
    partly.write_bytes(buffer.getvalue())
    partly.replace(path)


class Histories:
    """Histories of a folder, which are read from disk where a window is drawn; no more is held in memory.

    Args:
        folder: The folder.
        spec: Description of the task family that reads them.
        every: One in ``every`` consecutive episodes is read, so that a window spans more of the learning.

    Raises:
        UserError: The folder holds no histories, or those of a family with other observations or actions, or ``every``
            is more than 1 and the length of episodes was not stored.
    """

    def __init__(self, folder: Path, spec: Spec, every: int = 1) -> None:
        require((folder / FILE).is_file(), f"{folder}: no learning histories ({FILE}); `metarun collect` writes them")
        found, expected = read_json(folder / FILE), description(spec)
        for key, value in expected.items():
            if found.get(key) != value:
                raise UserError(f"{folder}: histories with {key}={found.get(key)}, and this task has {key}={value}")
        self.spec, self.every, self.paths = spec, every, sorted(folder.glob("*.npy"))
        require(bool(self.paths), f"{folder}: no history yet; `metarun collect` writes one file for each task")
        horizon = found.get("horizon", 1 if every == 1 else None)
        if type(horizon) is not int or horizon < 1:
            raise UserError(f"{folder / FILE}: no length of episodes; collect again, or set algorithm.every=1")
        self.horizon = horizon

    def windows(self, count: int, length: int) -> Sequence[Tensor]:
        """Draw windows of the histories at random, with torch's generator.

        Args:
            count: Number of windows, B.
            length: Steps of a window, S.

        Returns:
            Observation, action, reward, mask and done, [S + 1, B, columns] each. The first row is the step before the
            window; before the first step of a history it has no action (-1, or zeros) and zeros.
        """
        sizes = columns(self.spec)
        rows = np.zeros((count, length + 1, sum(sizes)), np.float32)
        if self.spec.discrete_actions:
            rows[:, :, sizes[0]] = -1
        for row, file in zip(rows, torch.randint(len(self.paths), (count,)).tolist(), strict=True):
            history = self.opened(self.paths[file], length, sum(sizes))
            stream = int(torch.randint(history.shape[0], ()))
            first = int(torch.randint(self.every, ())) if self.every > 1 else 0
            start = int(torch.randint(-1, self.kept(history, first) - length, ()))
            episode, step = np.divmod(np.arange(max(start, 0), start + length + 1), self.horizon)
            row[max(-start, 0) :] = history[stream, (first + self.every * episode) * self.horizon + step]
            if start < 0:
                row[1, -1] = 0  # a trial begins: no episode ended before
        return torch.from_numpy(rows).transpose(0, 1).split(sizes, -1)

    def opened(self, path: Path, length: int, width: int) -> NDArray[np.float32]:
        """Return a history on disk [E, S, columns]; raises :class:`UserError` if it is damaged or too short."""
        try:
            history: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
        fits = history.ndim == 3 and history.dtype == np.float32 and history.shape[2] == width and len(history) > 0
        require(fits, f"{path} is damaged: {history.dtype} {list(history.shape)} are no steps of this task")
        steps = self.kept(history, self.every - 1)
        kept = f", {steps} of which algorithm.every={self.every} keeps" if self.every > 1 else ""
        total = history.shape[1]
        require(total % self.horizon == 0, f"{path} is damaged: {total} steps are no episodes of {self.horizon}")
        require(steps >= length, f"{path}: a history of {total} steps{kept}; algorithm.context={length} needs as many")
        return history

    def kept(self, history: NDArray[np.float32], first: int) -> int:
        """Return the number of steps of each stream in episodes ``first``, ``first + every``, ..."""
        episodes = history.shape[1] // self.horizon
        return -(-(episodes - first) // self.every) * self.horizon
