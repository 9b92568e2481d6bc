"""Advantages: generalised advantage estimation, and the linear baseline that MAML fits to each task."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun import distributed


def gae(reward: Tensor, value: Tensor, running: Tensor, discount: float, smoothing: float) -> Tensor:
    """Generalised advantages [..., S] of trials (Schulman et al. 2016, arXiv:1506.02438, equation 16).

    A trial is one sequence of decisions. The steps in which a copy waits for the next episode are no part of it:
    they are neither discounted nor bootstrapped from, and have advantage 0. So the last step of an episode is followed
    by the first one of the next, whose value it bootstraps from, discounted once as between any two steps. The end of
    the S steps is the end of the task: a horizon that belongs to the task is not bootstrapped over.

    With these advantages, ``advantage + value`` is the value's target at running steps, and means nothing at others.

    Args:
        reward: [..., S], 0 at waiting steps.
        value: [..., S]; what it is at waiting steps does not matter.
        running: [..., S] bool, the steps that were part of an episode.
        discount: of rewards, a step.
        smoothing: the lambda of the estimator.
    """
    following = torch.zeros_like(value[..., 0])
    after = []
    for now, acts in zip(reversed(value.unbind(-1)), reversed(running.unbind(-1)), strict=True):
        after.append(following)
        following = torch.where(acts, now, following)
    td_error = reward + discount * torch.stack(after[::-1], -1) - value
    advantage = torch.zeros_like(following)
    backwards = []
    for error, acts in zip(reversed(td_error.unbind(-1)), reversed(running.unbind(-1)), strict=True):
        advantage = torch.where(acts, error + discount * smoothing * advantage, advantage)
        backwards.append(advantage)
    return torch.stack(backwards[::-1], -1) * running


def discounted(reward: Tensor, discount: float) -> Tensor:
    """Discounted sums of the rewards of one episode from each step on, [..., S]."""
    return gae(reward, torch.zeros_like(reward), torch.ones_like(reward, dtype=torch.bool), discount, 1.0)


def linear_baseline(observation: Tensor, reward: Tensor, running: Tensor, discount: float) -> Tensor:
    """Values [T, E, S] by ridge regression of the discounted returns, one fit a task, as in rllab.

    The features are the observation, its square, time up to its cube, and a constant.
    """
    tasks, copies, steps = reward.shape
    # A robot's squared velocities, squared once more, and the ridge are too far apart for float32.
    wide = reward.dtype if reward.device.type == "mps" else torch.float64
    seen = observation.to(wide).clamp(-10, 10)
    time = torch.arange(steps, device=reward.device, dtype=wide) / 100
    powers = torch.stack([time, time**2, time**3, torch.ones_like(time)], -1)
    features = torch.cat([seen, seen.square(), powers.expand(tasks, copies, -1, -1)], -1)
    x = (features * running[..., None]).flatten(1, 2)
    y = discounted(reward, discount).flatten(1, 2)[..., None].to(wide)
    count = running.flatten(1).sum(1)[:, None, None]
    ridge = 1e-5 * torch.eye(x.shape[-1], device=x.device, dtype=wide)
    # cholesky_ex, unlike cholesky, does not read back whether it succeeded: the ridge sees to that.
    factor = torch.linalg.cholesky_ex(x.mT @ x / count + ridge)[0]
    weights = torch.cholesky_solve(x.mT @ y / count, factor)
    return (features.flatten(1, 2) @ weights).view_as(reward).to(reward.dtype) * running


def over_running(values: Tensor, running: Tensor) -> Tensor:
    """The mean of ``values`` [...] over the steps that are ``running``, of all trials together; 0 if none is."""
    return (values * running).sum() / running.sum().clamp_min(1)


def normalised(advantage: Tensor, running: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean 0 and standard deviation 1 over the running steps along ``dims``, 0 elsewhere; and that deviation.

    Where ``dims`` has the tasks', 0, over those of all processes.
    """

    def total(x: Tensor) -> Tensor:
        own = x.sum(dims, keepdim=True)
        return distributed.average(own) * distributed.world_size() if 0 in dims else own

    count = total(running).clamp_min(1)
    centred = (advantage - total(advantage * running) / count) * running
    scale = (total(centred.square()) / count).sqrt() + 1e-8
    return centred / scale, scale
