"""Running policies in environments: all tasks and all copies of them advance together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms.rl.distributions import distribution, sampling_noise
from metarun.errors import require
from metarun.tasks.base import Spec
from metarun.tasks.rl.base import Environment


class Percept(NamedTuple):
    """What an agent perceives before it acts, each [T, E, ...].

    ``before``, ``action``, ``reward`` and ``done`` are of the step before: the observation that was acted on, what
    was done and what it paid; zeros, no action (-1, or zeros if continuous), 0 and false at the start of a trial.
    ``done`` says that an episode has ended: on the first step of the next one, and while a copy that finished early
    waits for the others.
    """

    observation: Tensor
    before: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor


Act = Callable[[Percept], Tensor]
"""A policy in use: percept -> action distribution parameters [T, E, outputs]; it may remember."""


@dataclass(frozen=True)
class Rollout:
    """What happened to T x E agents in S steps: one episode, or the consecutive episodes of a trial."""

    observation: Tensor
    """[T, E, S, size], what was seen before acting."""
    action: Tensor
    """[T, E, S] or [T, E, S, size]."""
    reward: Tensor
    """[T, E, S], 0 once the episode has ended."""
    running: Tensor
    """[T, E, S] bool: the step was part of an episode. A finished copy waits, its state unchanged."""
    terminated: Tensor
    """[T, E, S] bool: the episode ended with this step. Those that never do are truncated, at the horizon or before."""

    def returns(self) -> Tensor:
        """Undiscounted returns, [T, E]."""
        return self.reward.sum(-1)

    def episode(self, number: int, horizon: int) -> Rollout:
        """One episode of a trial (negative numbers count from the last)."""
        start = number * horizon % self.reward.shape[2]
        return self._map(lambda x: x[:, :, start : start + horizon])

    def first(self, copies: int) -> Rollout:
        """The first ``copies`` of each task's copies."""
        return self._map(lambda x: x[:, :copies])

    def joined(self, more: Rollout) -> Rollout:
        """These copies and, after them, ``more`` of the same tasks."""
        pairs = ((getattr(self, field.name), getattr(more, field.name)) for field in fields(self))
        return Rollout(*(torch.cat(pair, 1) for pair in pairs))

    def _map(self, f: Callable[[Tensor], Tensor]) -> Rollout:
        return Rollout(*(f(getattr(self, field.name)) for field in fields(self)))


@torch.no_grad()
def collect(
    env: Environment, spec: Spec, act: Act, copies: int, episodes: int, generator: torch.Generator | None
) -> Rollout:
    """``copies`` trials of ``episodes`` episodes in every task: always ``episodes * env.horizon`` steps."""
    shape = (env.tasks, copies)
    noise = sampling_noise(spec, (episodes * env.horizon, *shape), env.device, generator).unbind()
    reward = torch.zeros(shape, device=env.device)
    done = torch.zeros(shape, dtype=torch.bool, device=env.device)
    if spec.discrete_actions:
        action = torch.full(shape, -1, device=env.device)
    else:
        action = torch.zeros(*shape, spec.output_size, device=env.device)
    steps: list[tuple[Tensor, ...]] = []
    for _ in range(episodes):
        state = env.reset(copies, generator)
        running = torch.ones(shape, dtype=torch.bool, device=env.device)
        for time in range(env.horizon):
            observation = env.observe(state)
            before = steps[-1][0] if steps else torch.zeros_like(observation)
            output = act(Percept(observation, before, action, reward, done))
            action = distribution(spec, output).sample(noise[len(steps)])
            stepped = env.step(state, action, generator)
            if not steps:
                check(env, observation, stepped, shape)
            moved, reward, ended = stepped
            reward, ended = reward * running, ended & running
            steps.append((observation, action, reward, running, ended))
            state = torch.where(running.view(*shape, *[1] * (state.ndim - 2)), moved, state)
            running = running & ~ended
            if (cut := env.truncated()) is not None:
                running = running & ~cut
            done = ~running if time < env.horizon - 1 else torch.ones_like(running)
    return Rollout(*(torch.stack(each, 2) for each in zip(*steps, strict=True)))


def check(env: Environment, observation: Any, stepped: Any, shape: tuple[int, int]) -> None:
    """Refuse what an environment of a user's own returns if it is not of the shapes that it must have.

    Raises:
        UserError: naming the environment, the method, what was found and what is right.
    """
    name = f"{type(env).__module__}.{type(env).__qualname__}"

    def told(value: Any) -> str:
        return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"

    require(
        isinstance(observation, Tensor) and observation.shape[:-1] == shape,
        f"{name}.observe returned {told(observation)}; it must be [tasks, copies, size], here {shape} and the size",
    )
    require(
        isinstance(stepped, tuple) and len(stepped) == 3,
        f"{name}.step returned {told(stepped)}{f' of {len(stepped)}' if isinstance(stepped, tuple) else ''}; "
        "it must be (state, reward, terminated)",
    )
    for part, value in zip(("reward", "terminated"), stepped[1:], strict=True):
        fits = isinstance(value, Tensor) and value.shape == shape and (part == "reward" or value.dtype == torch.bool)
        kind = " of type bool" if part == "terminated" else ""
        require(fits, f"{name}.step returned {told(value)} as {part}; it must be [tasks, copies], here {shape}{kind}")
