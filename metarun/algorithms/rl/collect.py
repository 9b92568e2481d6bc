"""Running policies in environments: all tasks and all copies of them advance together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms.rl.distributions import distribution, sampling_noise
from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.rollout import Rollout


class Percept(NamedTuple):
    """Input of an agent before it acts, each [T, E, ...].

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
