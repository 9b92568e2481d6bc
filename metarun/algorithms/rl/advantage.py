"""Advantages: generalised advantage estimation, and the linear baseline that MAML fits to each task."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun import distributed


def gae(reward: Tensor, value: Tensor, mask: Tensor, discount: float, gae_lambda: float) -> Tensor:
    """Return generalised advantages [..., S] of trials (Schulman et al. 2016, arXiv:1506.02438, equation 16).

    A trial is one sequence of decisions. Steps in which an environment waits for the next episode are left out: they
    are neither discounted nor bootstrapped from, and their advantage is 0. The last step of an episode is therefore
    followed by the first one of the next. It bootstraps from that step's value, discounted once. The trial ends with
    the last of the S steps, and nothing is bootstrapped beyond it.

    With these advantages, ``advantage + value`` is the target of the value where ``mask`` is true. It has no
    meaning elsewhere.

    Args:
        reward: Rewards [..., S], 0 where ``mask`` is false.
        value: Values [..., S]. Those where ``mask`` is false are not used.
        mask: [..., S] bool, true for the steps of an episode.
        discount: Discount factor per step.
        gae_lambda: The lambda of the estimator.
    """
    following = torch.zeros_like(value[..., 0])
    after = []
    for now, acts in zip(reversed(value.unbind(-1)), reversed(mask.unbind(-1)), strict=True):
        after.append(following)
        following = torch.where(acts, now, following)
    td_error = reward + discount * torch.stack(after[::-1], -1) - value
    advantage = torch.zeros_like(following)
    backwards = []
    for error, acts in zip(reversed(td_error.unbind(-1)), reversed(mask.unbind(-1)), strict=True):
        advantage = torch.where(acts, error + discount * gae_lambda * advantage, advantage)
        backwards.append(advantage)
    return torch.stack(backwards[::-1], -1) * mask


def discounted(reward: Tensor, discount: float) -> Tensor:
    """Return the discounted sum of the rewards of one episode from each step on, [..., S]."""
    return gae(reward, torch.zeros_like(reward), torch.ones_like(reward, dtype=torch.bool), discount, 1.0)


def linear_baseline(observation: Tensor, reward: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Return values [T, E, S] by ridge regression of the discounted returns, one fit per task, as in rllab.

    Features are the observation, its square, time up to its cube, and a constant.
    """
    tasks, num_envs, steps = reward.shape
    # A robot's squared velocities, squared once more, and the ridge are too far apart for float32.
    wide = reward.dtype if reward.device.type == "mps" else torch.float64
    seen = observation.to(wide).clamp(-10, 10)
    time = torch.arange(steps, device=reward.device, dtype=wide) / 100
    powers = torch.stack([time, time**2, time**3, torch.ones_like(time)], -1)
    features = torch.cat([seen, seen.square(), powers.expand(tasks, num_envs, -1, -1)], -1)
    x = (features * mask[..., None]).flatten(1, 2)
    y = discounted(reward, discount).flatten(1, 2)[..., None].to(wide)
    count = mask.flatten(1).sum(1)[:, None, None]
    ridge = 1e-5 * torch.eye(x.shape[-1], device=x.device, dtype=wide)
    # cholesky_ex, unlike cholesky, does not read back whether it succeeded: the ridge sees to that.
    factor = torch.linalg.cholesky_ex(x.mT @ x / count + ridge)[0]
    weights = torch.cholesky_solve(x.mT @ y / count, factor)
    return (features.flatten(1, 2) @ weights).view_as(reward).to(reward.dtype) * mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` [...] where ``mask`` is true, over all dimensions; 0 if it is true nowhere."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def normalised(advantage: Tensor, mask: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Normalise advantages to mean 0 and standard deviation 1 where ``mask`` is true; elsewhere they become 0.

    Args:
        advantage: Advantages [T, E, S].
        mask: [T, E, S] bool.
        dims: Dimensions over which mean and deviation are taken. If 0 is among them, over the tasks of all processes.

    Returns:
        The normalised advantages, and the standard deviation that they were divided by.
    """

    def total(x: Tensor) -> Tensor:
        own = x.sum(dims, keepdim=True)
        return distributed.average(own) * distributed.world_size() if 0 in dims else own

    count = total(mask).clamp_min(1)
    centred = (advantage - total(advantage * mask) / count) * mask
    scale = (total(centred.square()) / count).sqrt() + 1e-8
    return centred / scale, scale
