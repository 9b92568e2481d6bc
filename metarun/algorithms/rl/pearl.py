"""PEARL: off-policy meta-RL with a latent task variable, inferred from context and sampled to explore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.outer_optimizer import Adam
from metarun.algorithms.rl.base import RLAlgorithm
from metarun.algorithms.rl.collect import Rollout, Transition, collect
from metarun.algorithms.rl.distributions import MIN_LOG_STD
from metarun.algorithms.rl.replay import Steps, TaskReplay
from metarun.algorithms.rl.sac import actor_loss, critic_loss, follow, soft_target, squashed, temperature_loss
from metarun.errors import require
from metarun.models.roles import ContextPolicy
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment, Wrapper
from metarun.types import Fraction, NonNegative, Positive, Rate


class RecordingEnv(Wrapper):
    """An environment that squashes actions by tanh and records what rollouts lack.

    Attributes:
        after: Observation after each step, a list of [T, E, size].
        rewards: Shaped reward of each step, a list of [T, E].
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self.after: list[Tensor] = []
        self.rewards: list[Tensor] = []

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        state, reward, ended = self.env.step(state, action.tanh(), generator)
        self.after.append(self.env.observe(state))
        self.rewards.append(self.env.shaped(state, reward))
        return state, reward, ended


class PEARL(RLAlgorithm):
    """Probabilistic embeddings for actor-critic RL (Rakelly et al. 2019, arXiv:1903.08254, algorithms 1 and 2).

    In the first ``prior_episodes`` episodes of a trial, z is drawn from the prior N(0, I). In each later episode, z is
    drawn from the posterior given all steps of the trial so far (posterior sampling). At test, actions are the means
    of the policy, and :meth:`rollouts` returns one trial, whose later episodes show the adaptation.

    An outer step collects ``rollouts`` trials in each new task, then takes ``gradient_steps`` steps of soft
    actor-critic, each on ``tasks`` tasks of the replay buffer. The posterior is computed from ``context`` steps of each
    task, the losses from ``batch`` others. Encoder and critics minimise the critic loss plus ``kl_weight`` times the
    mean KL(posterior || prior). The actor's gradient does not reach the encoder. ``contexts`` says whether contexts
    are drawn from one whole trial of a task or from its prior episodes only. Other steps are drawn from all trials.
    With ``shaped``, critics learn from the shaped reward of the task family (the paper's sparse tasks need it).
    Contexts always hold the true reward. ``temperature``: ``None`` tunes it towards an entropy of minus the number of
    action dimensions. The optimizer is Adam at ``outer_lr``.

    The replay buffer holds the steps of the last ``replay_tasks`` tasks: 4 * replay_tasks * rollouts * episodes *
    horizon * (2 * observation size + action size + 3) bytes, also in checkpoints.

    Differences from the authors' code: it revisits a fixed list of tasks and keeps all their steps for the losses and
    those of the last visit for contexts, whereas here each task is visited once. It learns a value function, whereas
    this has target critics. It penalises large means and standard deviations of actions. It weighs the sum of the KL
    over tasks, so its ``kl_lambda`` is ``tasks`` times smaller than ``kl_weight``.
    """

    roles: ClassVar[tuple[str, ...]] = ("context_policy",)
    model: ContextPolicy  # type: ignore[assignment]
    needs_full_meta_batch = True  # the replay is of tasks that one process has met

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        rollouts: Positive,
        test_rollouts: Positive,
        prior_episodes: Positive,
        contexts: Literal["trial", "prior"],
        replay_tasks: Positive,
        gradient_steps: Positive,
        tasks: Positive,
        context: Positive,
        batch: Positive,
        discount: Fraction,
        shaped: bool,
        reward_scale: Rate,
        temperature: Rate | None,
        kl_weight: NonNegative,
        target_rate: Fraction,
        outer_lr: Rate,
    ) -> None:
        super().__init__()
        require(
            not spec.discrete_actions,
            "algorithm=pearl squashes continuous actions, and this task's are discrete; what fits: algorithm=rl2, "
            "varibad, maml_trpo",
        )
        self.model = cast("ContextPolicy", model)
        self.spec, self.trials, self.test_rollouts = spec, rollouts, test_rollouts
        self.prior_episodes, self.contexts = prior_episodes, contexts
        self.gradient_steps, self.tasks, self.context, self.batch = gradient_steps, tasks, context, batch
        self.discount, self.shaped, self.reward_scale = discount, shaped, reward_scale
        self.kl_weight, self.target_rate = kl_weight, target_rate
        self.replay = TaskReplay(replay_tasks)
        self.critics = [*self.model.encoder.parameters(), *self.model.critics.parameters()]
        self.actor = list(self.model.actor.parameters())
        self.optimizer = Adam(self.critics, lr=outer_lr)
        self.actor_optimizer = Adam(self.actor, lr=outer_lr)
        self.fixed_temperature = temperature
        if temperature is None:
            self.log_temperature = nn.Parameter(torch.zeros(()))
            self.temperature_optimizer = Adam([self.log_temperature], lr=outer_lr)

    # Acting

    @torch.no_grad()
    def trial(self, env: Environment, num_envs: int, explore: bool) -> tuple[Rollout, Tensor]:
        """Run ``num_envs`` trials of each task; return the rollouts and their packed steps [T, E, S, size].

        Actions are sampled if ``explore``; otherwise they are the means of the policy.
        """
        generator = env.generator()
        shift = precision = torch.zeros(env.tasks, num_envs, self.model.latent, device=env.device)
        episodes, steps = [], []
        for number in range(env.episodes):
            z = torch.randn_like(shift)
            if number >= self.prior_episodes:
                z = shift / precision + z / precision.sqrt()
            recording = RecordingEnv(env)
            act = Actor(self.model, z, explore)
            rollout = collect(recording, self.spec, act, num_envs, 1, generator)
            rollout = replace(rollout, action=rollout.action.tanh())
            packed = Steps(
                rollout.observation, rollout.action, rollout.reward,
                torch.stack(recording.after, 2), torch.stack(recording.rewards, 2), rollout.terminated,
            ).packed()  # fmt: skip
            episodes.append(rollout)
            steps.append(packed)
            factors = self.model.factors(packed[..., : self.model.reads])
            more = ((x * rollout.mask[..., None]).sum(2) for x in factors)
            shift, precision = (x + y for x, y in zip((shift, precision), more, strict=True))
        joined = Rollout(*(torch.cat([getattr(e, field.name) for e in episodes], 2) for field in fields(Rollout)))
        return joined, torch.cat(steps, 2)

    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        require(
            env.episodes > self.prior_episodes,
            f"task.episodes={env.episodes}: algorithm=pearl adapts after algorithm.prior_episodes="
            f"{self.prior_episodes} of a trial's episodes; use {self.prior_episodes + 1} or more",
        )
        yield self.trial(env, self.test_rollouts, explore=False)[0]

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        self.train()
        require(
            batch.tasks <= self.replay.tasks,
            f"algorithm.replay_tasks={self.replay.tasks} is less than the {batch.tasks} tasks of a meta-batch",
        )
        rollout, steps = self.trial(batch, self.trials, explore=True)
        early = torch.arange(steps.shape[2], device=steps.device) < self.prior_episodes * batch.horizon
        early = early.expand_as(rollout.mask) if self.contexts == "prior" else rollout.mask
        self.replay.add(steps, rollout.mask, early)
        each_step = [self.gradient_step() for _ in range(self.gradient_steps)]
        means = {name: torch.stack([each[name] for each in each_step]).mean() for name in each_step[0]}
        return {"return": rollout.returns().mean(), **means}

    # Learning

    def gradient_step(self) -> Metrics:
        """Update encoder and critics, the actor, and the temperature once, on tasks of the replay buffer."""
        places = self.replay.choose(self.tasks)
        context = self.replay.draw_context(places, self.context)[..., : self.model.reads]
        steps = self.unpack(self.replay.draw(places, self.batch))
        z, kl = self.infer(context)
        z = z[:, None].expand(-1, self.batch, -1)

        loss = self.critic_loss(z, steps)
        descend(loss + self.kl_weight * kl, self.critics, self.optimizer)
        value, logp = self.actor_loss(z.detach(), steps.observation)
        descend(value, self.actor, self.actor_optimizer)
        metrics = {"critic_loss": loss, "actor_loss": value, "kl": kl, "entropy": -logp.mean()}
        if self.fixed_temperature is None:
            moved = temperature_loss(self.log_temperature, logp, -self.spec.output_size)
            descend(moved, [self.log_temperature], self.temperature_optimizer)
            metrics["temperature"] = self.log_temperature.exp()
        follow(self.model.targets.parameters(), self.model.critics.parameters(), self.target_rate)
        return {name: x.detach() for name, x in metrics.items()}

    def infer(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Sample z [M, latent] from the posteriors given ``context`` [M, C, reads]; return it and the mean KL."""
        shift, precision = (x.sum(1) for x in self.model.factors(context))
        mean, variance = shift / precision, 1 / precision
        z = mean + variance.sqrt() * torch.randn_like(mean)
        return z, 0.5 * (variance + mean.square() - 1 - variance.log()).sum(-1).mean()

    def critic_loss(self, z: Tensor, steps: Steps) -> Tensor:
        """Return the loss of both critics on ``steps`` [M, B, ...]. Its gradient reaches ``z`` [M, B, latent]."""
        with torch.no_grad():
            action, logp = self.draw(steps.after, z)
            after = self.model.values(steps.after, action, z, targets=True)
            reward = self.reward_scale * (steps.shaped if self.shaped else steps.reward)
            target = soft_target(reward, steps.terminated, after, logp, self.temperature(), self.discount)
        return critic_loss(self.model.values(steps.observation, steps.action, z), target)

    def actor_loss(self, z: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actor's loss and the log-densities [M, B] of its sampled actions."""
        action, logp = self.draw(observation, z)
        return actor_loss(self.model.values(observation, action, z), logp, self.temperature()), logp

    def draw(self, observation: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Sample actions of the policy; return them and their log-densities."""
        output = self.model.act(observation, z)
        return squashed(output, torch.randn_like(output[..., : self.spec.output_size]))

    def temperature(self) -> Tensor | float:
        """Return the weight of the entropy."""
        return self.log_temperature.detach().exp() if self.fixed_temperature is None else self.fixed_temperature

    def unpack(self, steps: Tensor) -> Steps:
        return Steps.unpacked(steps, (steps.shape[-1] - self.spec.output_size - 3) // 2, self.spec.output_size)

    def protocol(self) -> dict[str, Any]:
        return {"trials": self.test_rollouts, "prior_episodes": self.prior_episodes, "optimizer": "SAC"}

    def checkpoint(self) -> dict[str, Any]:
        return {**super().checkpoint(), "replay": self.replay.checkpoint()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.replay.restore(state["replay"])


class Actor:
    """An agent with a fixed ``z`` [T, E, latent]. It samples actions if ``explore``, else it takes their means."""

    def __init__(self, model: ContextPolicy, z: Tensor, explore: bool) -> None:
        self.model, self.z, self.explore = model, z, explore

    def __call__(self, transition: Transition) -> Tensor:
        output = self.model.act(transition.observation, self.z)
        if self.explore:
            return output
        mean = output.chunk(2, -1)[0]
        return torch.cat([mean, torch.full_like(mean, MIN_LOG_STD)], -1)


def descend(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Take a step of ``optimizer`` along the gradient of ``loss`` with respect to ``parameters`` alone."""
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    optimizer.step()
