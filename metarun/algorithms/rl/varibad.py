"""VariBAD: a policy conditioned on a learned belief about the task, for approximately Bayes-optimal exploration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun import distributed
from metarun.algorithms.base import Metrics
from metarun.algorithms.outer_optimizer import Adam
from metarun.algorithms.rl.advantage import masked_mean
from metarun.algorithms.rl.base import TrialLearner, by_step
from metarun.algorithms.rl.collect import Rollout, Transition
from metarun.algorithms.rl.distributions import distribution
from metarun.algorithms.rl.ppo import PPOLoss, advantages, descend
from metarun.models.roles import BeliefPolicy
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment
from metarun.types import Fraction, NonNegative, Positive, Rate


class BeliefAgent:
    """An agent with a belief. It keeps its inputs, beliefs, outputs and values at each step of a trial.

    Args:
        model: The policy.
        repeat: :meth:`RLAlgorithm.repeat`.
    """

    def __init__(self, model: BeliefPolicy, repeat: Callable[..., Any]) -> None:
        self.model, self.repeat = model, repeat
        self.hidden: Tensor | None = None
        self.inputs: list[Tensor] = []
        self.beliefs: list[tuple[Tensor, Tensor]] = []
        self.outputs: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, transition: Transition) -> Tensor:
        inputs, mean, log_variance, output, value, self.hidden = self.repeat(
            belief_step, self.model, transition, self.hidden
        )
        self.inputs.append(inputs)
        self.beliefs.append((mean, log_variance))
        self.outputs.append(output)
        self.values.append(value)
        return output.view(*transition.previous_reward.shape, -1)


def belief_step(model: BeliefPolicy, transition: Transition, hidden: Tensor | None) -> tuple[Tensor, ...]:
    """Take one step of the trials of T x E environments.

    Args:
        model: The policy.
        transition: Its input, tensors [T, E, ...].
        hidden: Its hidden state; ``None`` at the start of a trial.

    Returns:
        Encoded inputs [T * E, inputs], mean and log-variance of the belief [T * E, latent], parameters of action
        distributions [T * E, outputs], values [T * E], and the new hidden state.
    """
    inputs = model.encode(*transition).flatten(0, 1)
    mean, log_variance, hidden = model.belief(inputs[None], hidden)
    output, value = model.act(transition.observation.flatten(0, 1), mean[0], log_variance[0])
    return inputs, mean[0], log_variance[0], output, value, hidden


class VariBAD(TrialLearner):
    """Variational Bayes-adaptive deep RL (Zintgraf et al. 2020, arXiv:1910.08348, equations 6-11).

    The encoder q(m | experience so far) and the reward decoder maximise the ELBO of all rewards of a trial, past and
    future, at ``bounds`` randomly chosen times of each trial. The prior is the belief one step before; its KL term is
    weighed by ``kl_weight``. They take ``vae_epochs`` Adam steps at ``vae_lr`` on the trials of the meta-batch. (The
    authors use a buffer of earlier trials.) The next observation of the last step of an episode is unknown, and the
    decoder receives zeros instead.

    The policy reads the observation and the belief, but no sample of m. PPO trains it for ``epochs`` passes over all
    steps in ``minibatches`` parts at ``outer_lr``, with gradients clipped to ``max_grad_norm``. No gradient reaches the
    encoder. The weight of the entropy decreases linearly to 0 over ``entropy_decay_over`` iterations, if given.
    """

    roles: ClassVar[tuple[str, ...]] = ("belief_policy",)
    model: BeliefPolicy  # type: ignore[assignment]

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        rollouts: Positive,
        test_rollouts: Positive,
        discount: Fraction,
        gae_lambda: Fraction,
        epochs: Positive,
        minibatches: Positive,
        clip: Rate,
        value_weight: NonNegative,
        entropy_weight: NonNegative,
        entropy_decay_over: Positive | None,
        max_grad_norm: Rate,
        outer_lr: Rate,
        bounds: Positive,
        kl_weight: NonNegative,
        vae_epochs: Positive,
        vae_lr: Rate,
    ) -> None:
        super().__init__(model, spec, test_rollouts)
        self.trials, self.discount, self.gae_lambda = rollouts, discount, gae_lambda
        self.epochs, self.minibatches, self.max_grad_norm = epochs, minibatches, max_grad_norm
        self.ppo = PPOLoss(clip, value_weight, entropy_weight, entropy_decay_over)
        self.bounds, self.kl_weight, self.vae_epochs = bounds, kl_weight, vae_epochs
        parts = (self.model.actor, self.model.head, self.model.critic, self.model.value_head)
        acting = [p for part in parts for p in part.parameters()]
        believing = [p for p in model.parameters() if not any(p is other for other in acting)]
        self.optimizer = Adam(acting, lr=outer_lr, eps=1e-5)
        self.vae_optimizer = Adam(believing, lr=vae_lr)

    def agent(self, env: Environment) -> BeliefAgent:
        return BeliefAgent(self.model, self.repeat)

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        self.train()
        rollout, agent = self.trial(batch, self.trials)
        metrics = self.learn_to_act(rollout, agent, self.ppo.entropy_weight_at(iteration, rollout.reward))
        inputs = torch.stack(agent.inputs)
        bound: Metrics = {}
        for _ in range(self.vae_epochs):
            self.vae_optimizer.zero_grad()
            bound = self.backward(self.negative_bound, inputs, rollout, batch.horizon)
            distributed.average_gradients(p for group in self.vae_optimizer.param_groups for p in group["params"])
            self.vae_optimizer.step()
        return {"return": rollout.returns().mean(), **metrics, **{name: each for name, each in bound.items() if name}}

    # Acting

    def learn_to_act(self, rollout: Rollout, agent: BeliefAgent, entropy_weight: Tensor) -> Metrics:
        """Train the policy by PPO on the steps of a meta-batch. Beliefs are part of its observations."""
        advantage, target = self.repeat(advantages, rollout, agent.values, self.discount, self.gae_lambda)
        seen = by_step(rollout.observation)
        mean, log_variance = (torch.stack(parts) for parts in zip(*agent.beliefs, strict=True))
        outputs, action = torch.stack(agent.outputs), by_step(rollout.action)
        old = distribution(self.spec, outputs)
        steps = [seen, mean, log_variance, action, old.log_prob(action)]
        steps = [x.flatten(0, 1) for x in [*steps, *map(by_step, (advantage, target, rollout.mask))]]

        mean_loss, gradient_norm = descend(
            lambda chosen: self.backward(self.acting_loss, entropy_weight, *(x[chosen] for x in steps)),
            len(steps[0]), self.optimizer,
            epochs=self.epochs, minibatches=self.minibatches, max_grad_norm=self.max_grad_norm,
        )  # fmt: skip
        mask = by_step(rollout.mask)
        entropy = masked_mean(old.entropy(), mask)
        return {"loss": mean_loss, "entropy": entropy, "gradient_norm": gradient_norm}

    def acting_loss(
        self, entropy_weight: Tensor, seen: Tensor, mean: Tensor, log_variance: Tensor, *rest: Tensor
    ) -> Tensor:
        """Return PPO's loss [] of N steps: observations, beliefs, and the further arguments of :class:`PPOLoss`."""
        output, value = self.model.act(seen, mean, log_variance)
        return self.ppo.loss(entropy_weight, distribution(self.spec, output), value, *rest)

    # Believing

    @torch.no_grad()
    def expected(self, env: Environment, observation: Tensor, action: Tensor, after: Tensor) -> Tensor:
        """Return the decoded rewards, as a mean over 32 samples of m from the belief at each time."""
        _, agent = self.trial(env, self.test_rollouts)
        mean, log_variance = (torch.stack(parts, 1) for parts in zip(*agent.beliefs, strict=True))
        generator = torch.Generator(mean.device).manual_seed(0)
        draws = torch.randn(32, 1, 1, 1, mean.shape[-1], generator=generator, dtype=mean.dtype, device=mean.device)
        m = mean[:, :, None] + (0.5 * log_variance[:, :, None]).exp() * draws
        m = m.expand(-1, -1, -1, len(after), -1)
        steps = [x.expand(*m.shape[:-1], *x.shape[1:]) for x in (observation, action, after)]
        return self.model.reward(m, *steps).mean(0).unflatten(0, (env.tasks, self.test_rollouts))

    def bound(self, inputs: Tensor, rollout: Rollout, horizon: int) -> Metrics:
        """Return the ELBO for ``inputs`` [S, B, ...], averaged over trials and times, in nats up to a constant.

        log p(r | m) is the log-density of a Gaussian of unit variance without its constant.
        """
        mean, log_variance, _ = self.model.belief(inputs)
        kl = divergence_of_steps(mean, log_variance)
        steps, trials = kl.shape
        times = torch.stack([torch.randperm(steps, device=kl.device)[: self.bounds] for _ in range(trials)], 1)
        picked = [x.gather(0, times[..., None].expand(-1, -1, x.shape[-1])) for x in (mean, log_variance)]
        m = picked[0] + (0.5 * picked[1]).exp() * torch.randn_like(picked[0])

        observation, action, reward, mask = (
            by_step(x) for x in (rollout.observation, rollout.action, rollout.reward, rollout.mask)
        )
        # What comes after an episode's last step is another episode's first observation: not of this step.
        inside = torch.arange(1, steps + 1, device=kl.device) % horizon != 0
        after = torch.cat([observation[1:], torch.zeros_like(observation[:1])]) * inside[:, None, None]
        wide = [x[None].expand(len(m), *x.shape) for x in (observation, action, after)]
        guess = self.model.reward(m[:, None].expand(-1, steps, -1, -1), *wide)
        likelihood = -0.5 * ((guess - reward).square() * mask).sum(1).mean()
        divergence = kl.gather(0, times).mean()
        return {
            "elbo": likelihood - self.kl_weight * divergence,
            "reward_error": -2 * likelihood / mask.sum(0).to(reward.dtype).mean(),
            "kl": divergence,
        }

    def negative_bound(self, inputs: Tensor, rollout: Rollout, horizon: int) -> tuple[Tensor, Metrics]:
        """Return the loss of the encoder and the decoder, and what :meth:`bound` returns."""
        found = self.bound(inputs, rollout, horizon)
        return found["elbo"].neg(), found

    def protocol(self) -> dict[str, Any]:
        return {"trials": self.test_rollouts, "optimizer": "PPO"}


def divergence_of_steps(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(q_t || q_t-1) of diagonal Gaussians [S, B, latent], with N(0, I) before the first: [S, B]."""
    before_mean = torch.cat([torch.zeros_like(mean[:1]), mean[:-1]])
    before = torch.cat([torch.zeros_like(mean[:1]), log_variance[:-1]])
    shift = (mean - before_mean).square() * (-before).exp()
    return 0.5 * ((log_variance - before).exp() + shift - 1 + before - log_variance).sum(-1)
