"""RL2: a recurrent policy whose hidden state, kept across the episodes of a trial, is the learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.outer_optimizer import Adam, Schedule
from metarun.algorithms.rl.advantage import masked_mean
from metarun.algorithms.rl.base import TrialLearner, by_step
from metarun.algorithms.rl.collect import Transition, called
from metarun.algorithms.rl.distributions import distribution
from metarun.algorithms.rl.ppo import PPOLoss, advantages, descend
from metarun.errors import UserError
from metarun.models.policies import ActionHead, AgentInput, TaskLinear
from metarun.models.roles import RecurrentPolicy
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment
from metarun.types import Fraction, NonNegative, Positive, Rate


class RecurrentAgent:
    """An agent with a recurrent policy. It keeps the policy's inputs, outputs and values at each step of a trial.

    Args:
        model: The policy.
        repeat: :meth:`RLAlgorithm.repeat`.
    """

    def __init__(self, model: RecurrentPolicy, repeat: Callable[..., Any] = called) -> None:
        self.model, self.repeat = model, repeat
        self.state: list[Any] = []
        """The model's hidden state; empty at the start of a trial."""
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, transition: Transition) -> Tensor:
        inputs, output, value, *self.state = self.repeat(policy_step, self.model, transition, self.state)
        self.inputs.append(inputs)
        self.outputs.append(output)
        self.values.append(value)
        return output.view(*transition.previous_reward.shape, -1)


def policy_step(model: RecurrentPolicy, transition: Transition, state: Sequence[Any]) -> tuple[Any, ...]:
    """Take one step of the trials of T x E environments.

    Args:
        model: The policy.
        transition: Its input, tensors [T, E, ...].
        state: Its hidden state; empty at the start of a trial.

    Returns:
        Encoded inputs [T * E, inputs], parameters of action distributions [T * E, outputs], values [T * E], and the
        parts of the new hidden state.
    """
    inputs = model.encode(*transition).flatten(0, 1)
    output, value, *state = model(inputs[None], *state)
    return inputs, output[0], value[0], *state


class RewardHead(nn.Module):
    """Predict the reward [...] of a step from features [..., width] and the action [..., A], linear in both.

    Each one-hot action has its own weight vector, as in the head of the policy.
    """

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.linear = TaskLinear(width, actions + 1)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        each = self.linear(features)
        return (each[..., :-1] * action).sum(-1) + each[..., -1]


def reward_head(model: RecurrentPolicy, spec: Spec) -> RewardHead:
    """Return a reward head for the features of ``model``; raises :class:`UserError` if their number is unknown."""
    if not (isinstance(model.head, ActionHead) and isinstance(model.encode, AgentInput)):
        raise UserError(
            "algorithm.reward_weight: the model's head must be a metarun.models.policies.ActionHead and its encode an "
            "AgentInput   to learn without a reward head: algorithm.reward_weight=0"
        )
    return RewardHead(model.head.linear.weight.shape[0], spec.output_size)


class RL2(TrialLearner):
    """RL2 (Duan et al. 2016, arXiv:1611.02779), trained by PPO (Schulman et al. 2017, arXiv:1707.06347).

    A meta-batch is ``rollouts`` trials of each task. PPO makes ``epochs`` passes over it in ``minibatches``
    minibatches of whole trials, so that the gradient flows through all steps of a trial. The loss is the surrogate
    clipped at ``clip``, plus ``value_weight`` times the squared error of the value, minus ``entropy_weight`` times the
    entropy. The weight of the entropy decays to 0 over ``entropy_decay_over`` iterations if given. Adam has learning
    rate ``outer_lr``, halved every ``halve_every`` iterations if given, and gradients clipped to ``max_grad_norm``.
    Values are of rewards times ``reward_scale``. With returns in the hundreds, the error of the values would otherwise
    dominate the gradient of the recurrent network, which policy and value share.

    If ``reward_weight`` is positive, a further head predicts the reward of each step during training, and its squared
    error times ``reward_weight`` is added to the loss (an auxiliary task, as in Jaderberg et al. 2017,
    arXiv:1611.05397). The hidden state then learns from every reward, before the policy makes use of it.
    """

    roles: ClassVar[tuple[str, ...]] = ("recurrent_policy",)
    model: RecurrentPolicy  # type: ignore[assignment]

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        rollouts: Positive,
        test_rollouts: Positive,
        reward_scale: Rate,
        discount: Fraction,
        gae_lambda: Fraction,
        epochs: Positive,
        minibatches: Positive,
        clip: Rate,
        value_weight: NonNegative,
        entropy_weight: NonNegative,
        entropy_decay_over: Positive | None,
        reward_weight: NonNegative,
        max_grad_norm: Rate,
        outer_lr: Rate,
        halve_every: Positive | None,
    ) -> None:
        super().__init__(model, spec, test_rollouts)
        self.trials, self.discount, self.gae_lambda = rollouts, discount, gae_lambda
        self.reward_scale = reward_scale
        self.epochs, self.minibatches, self.max_grad_norm = epochs, minibatches, max_grad_norm
        self.ppo = PPOLoss(clip, value_weight, entropy_weight, entropy_decay_over)
        self.schedule = Schedule(outer_lr, halve_every)
        self.reward_weight = reward_weight
        self.rewards = reward_head(self.model, spec) if reward_weight else None
        self.optimizer = Adam(self.parameters(), lr=outer_lr, eps=1e-5)

    def agent(self, env: Environment) -> RecurrentAgent:
        return RecurrentAgent(self.model, self.repeat)

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        self.train()
        self.schedule.apply(self.optimizer, iteration)
        rollout, agent = self.trial(batch, self.trials)
        scaled = replace(rollout, reward=self.reward_scale * rollout.reward)
        advantage, target = self.repeat(advantages, scaled, agent.values, self.discount, self.gae_lambda)
        with torch.no_grad():
            outputs = torch.stack(agent.outputs)
            action = by_step(rollout.action)
            old_logp = distribution(self.spec, outputs).log_prob(action)
        mask, reward = by_step(rollout.mask), by_step(rollout.reward)
        trials = [torch.stack(agent.inputs), action, old_logp, by_step(advantage), by_step(target), mask, reward]

        weight = self.ppo.entropy_weight_at(iteration, reward)
        loss, gradient_norm = descend(
            lambda chosen: self.backward(self.loss, weight, *(x[:, chosen] for x in trials)), action.shape[1],
            self.optimizer, epochs=self.epochs, minibatches=self.minibatches, max_grad_norm=self.max_grad_norm,
        )  # fmt: skip
        entropy = masked_mean(distribution(self.spec, outputs).entropy(), mask)
        returns = rollout.returns().mean()
        return {"loss": loss, "return": returns, "entropy": entropy, "gradient_norm": gradient_norm}

    def loss(
        self,
        entropy_weight: Tensor,
        inputs: Tensor,
        action: Tensor,
        old_logp: Tensor,
        advantage: Tensor,
        target: Tensor,
        mask: Tensor,
        reward: Tensor,
    ) -> Tensor:
        """Return the loss [] of B whole trials, tensors [S, B, ...], with the weight of the entropy []."""
        features, _ = self.model.features(inputs)
        policy, value = distribution(self.spec, self.model.head(features)), self.model.value(features)[..., 0]
        loss = self.ppo.loss(entropy_weight, policy, value, action, old_logp, advantage, target, mask)
        if self.rewards is not None:
            assert isinstance(self.model.encode, AgentInput)
            expected = self.rewards(features, self.model.encode.encode_action(action, reward.dtype))
            loss = loss + self.reward_weight * masked_mean(0.5 * (expected - reward).square(), mask)
        return loss

    def protocol(self) -> dict[str, Any]:
        return {"trials": self.test_rollouts, "optimizer": "PPO"}
