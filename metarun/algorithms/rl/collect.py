"""Rollouts of policies in batched environments. All environments of all tasks advance together."""

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


class Transition(NamedTuple):
    """The input of an agent at one step, tensors [T, E, ...].

    Attributes:
        observation: The current observation, [T, E, size].
        previous_observation: The observation of the previous step, [T, E, size]; zeros at the start of a trial.
        previous_action: The previous action, [T, E] if discrete, else [T, E, size]; -1 (discrete) or zeros at the
            start of a trial.
        previous_reward: The reward of the previous step, [T, E]; 0 at the start of a trial.
        done: [T, E] bool, true at the first step of every episode but the first, and while an environment whose
            episode has ended waits for the others.
    """

    observation: Tensor
    previous_observation: Tensor
    previous_action: Tensor
    previous_reward: Tensor
    done: Tensor


Act = Callable[[Transition], Tensor]
"""An agent: its input -> parameters of action distributions [T, E, outputs]. It may keep state."""


def called(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``."""
    return function(*arguments)


@torch.no_grad()
def collect(
    env: Environment,
    spec: Spec,
    act: Act,
    num_envs: int,
    episodes: int,
    generator: torch.Generator | None,
    repeat: Callable[..., Any] = called,
) -> Rollout:
    """Run trials of ``episodes`` episodes in every task.

    Args:
        env: Batched environment of T tasks.
        spec: Description of the task family.
        act: The agent.
        num_envs: Number of environments of each task, E.
        episodes: Number of episodes of a trial.
        generator: Source of random numbers; ``None`` on the ``meta`` device.
        repeat: :meth:`RLAlgorithm.repeat`, by which deterministic environments are stepped.

    Returns:
        Rollouts [T, E, S] of S = ``episodes * env.horizon`` steps.

    Raises:
        UserError: The environment returned tensors of wrong shapes.
    """
    shape = (env.tasks, num_envs)
    noise = sampling_noise(spec, (episodes * env.horizon, *shape), env.device, generator).unbind()
    reward = torch.zeros(shape, device=env.device)
    done = torch.zeros(shape, dtype=torch.bool, device=env.device)
    if spec.discrete_actions:
        action = torch.full(shape, -1, device=env.device)
    else:
        action = torch.zeros(*shape, spec.output_size, device=env.device)
    steps: list[tuple[Tensor, ...]] = []
    compute, source = (repeat, None) if env.is_deterministic else (called, generator)
    for _ in range(episodes):
        state = env.reset(num_envs, generator)
        mask = torch.ones(shape, dtype=torch.bool, device=env.device)
        for time in range(env.horizon):
            observation = compute(observe, env, state)
            previous = steps[-1][0] if steps else torch.zeros_like(observation)
            output = act(Transition(observation, previous, action, reward, done))
            action = distribution(spec, output).sample(noise[len(steps)])
            if steps:
                found = compute(advance, env, state, action, mask, source)
            else:
                stepped = env.step(state, action, source)
                check(env, observation, stepped, shape)
                found = where_acting(mask, state, stepped)
            acted = mask
            reward, ended, state, mask = found
            steps.append((observation, action, reward, acted, ended))
            if (cut := env.truncated()) is not None:
                mask = mask & ~cut
            done = ~mask if time < env.horizon - 1 else torch.ones_like(mask)
    return Rollout(*(torch.stack(each, 2) for each in zip(*steps, strict=True)))


def observe(env: Environment, state: Tensor) -> Tensor:
    """Return the observations [T, E, size] of a state [T, E, ...]."""
    return env.observe(state)


def advance(
    env: Environment, state: Tensor, action: Tensor, mask: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """Take a step in the environments whose episode goes on; the others keep their state.

    Args:
        env: Batched environment of T tasks.
        state: State [T, E, ...].
        action: Actions [T, E, ...].
        mask: [T, E] bool, true where the episode goes on.
        generator: Source of random numbers.

    Returns:
        Rewards [T, E], where episodes ended with this step [T, E], the next state, and where episodes go on [T, E].
    """
    return where_acting(mask, state, env.step(state, action, generator))


def where_acting(mask: Tensor, state: Tensor, stepped: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return what :func:`advance` does, of the result of ``Environment.step``."""
    moved, reward, ended = stepped
    reward, ended = reward * mask, ended & mask
    state = torch.where(mask.view(*mask.shape, *[1] * (state.ndim - 2)), moved, state)
    return reward, ended, state, mask & ~ended


def check(env: Environment, observation: Any, stepped: Any, shape: tuple[int, int]) -> None:
    """Check the shapes of what an environment's first step returned.

    Raises:
        UserError: A shape or a type is wrong. The message names the environment, the method and the right shape.
    """
    name = f"{type(env).__module__}.{type(env).__qualname__}"

    def found(value: Any) -> str:
        return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"

    require(
        isinstance(observation, Tensor) and observation.shape[:-1] == shape,
        f"{name}.observe returned {found(observation)}; it must be [tasks, num_envs, size], here {shape} and the size",
    )
    require(
        isinstance(stepped, tuple) and len(stepped) == 3,
        f"{name}.step returned {found(stepped)}{f' of {len(stepped)}' if isinstance(stepped, tuple) else ''}; "
        "it must be (state, reward, terminated)",
    )
    for part, value in zip(("reward", "terminated"), stepped[1:], strict=True):
        fits = isinstance(value, Tensor) and value.shape == shape and (part == "reward" or value.dtype == torch.bool)
        kind = " of type bool" if part == "terminated" else ""
        require(
            fits, f"{name}.step returned {found(value)} as {part}; it must be [tasks, num_envs], here {shape}{kind}"
        )
