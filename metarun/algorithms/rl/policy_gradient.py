"""MAML for RL and related methods: policy-gradient steps in the inner loop, an exchangeable outer step."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from metarun import distributed
from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import call_with
from metarun.algorithms.rl.advantage import discounted, gae, linear_baseline, normalised
from metarun.algorithms.rl.base import RLAlgorithm
from metarun.algorithms.rl.collect import Rollout, Transition, collect
from metarun.algorithms.rl.distributions import Distribution, distribution
from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment
from metarun.types import Count, Fraction, NonNegative, Positive, Rate


class Experience(NamedTuple):
    """Rollouts with the advantages and log-probabilities of their actions.

    Attributes:
        rollout: Rollouts of one episode each, [T, E, S].
        advantage: Advantages [T, E, S].
        logp: Log-probabilities of the actions when they were taken, [T, E, S].
        scale: Standard deviation that the advantages were divided by, [T]; 1 if they are not normalised.
    """

    rollout: Rollout
    advantage: Tensor
    logp: Tensor
    scale: Tensor

    def first(self, num_envs: int) -> Experience:
        """Return the first ``num_envs`` rollouts of each task."""
        advantage, logp = self.advantage[:, :num_envs], self.logp[:, :num_envs]
        return Experience(self.rollout.first(num_envs), advantage, logp, self.scale)


class OuterStep:
    """An outer step: updates the initialisation from experience before, during and after adaptation."""

    def prepare(self, learner: PolicyGradientLearner) -> None:
        """Called once at the end of the learner's constructor.

        Args:
            learner: The learner. An outer optimizer is set as ``learner.optimizer``.
        """

    @abstractmethod
    def step(self, learner: PolicyGradientLearner, path: Sequence[Experience], post: Experience) -> Metrics:
        """Update the learner's parameters.

        Args:
            learner: The learner.
            path: Experience before each inner step, in order.
            post: Experience after adaptation.

        Returns:
            Scalars to log.
        """

    def protocol(self) -> dict[str, Any]:
        """Return the facts needed to compare results with others, as plain values."""
        return {}


class PolicyGradientLearner(RLAlgorithm):
    """Learns from where a few policy-gradient steps solve a task (Finn, Abbeel & Levine 2017, arXiv:1703.03400).

    ``inner_steps`` vanilla policy-gradient steps of size ``inner_lr``, each on ``rollouts`` episodes a task, adapt the
    policy (0: one policy for all tasks): ``adapts: all`` parameters, or those of its ``head`` (ANIL, arXiv:1909.09157).
    Episodes after them show how good that was; ``outer`` moves the initialisation. Advantages are generalised, over a
    linear baseline fitted to each task, and ``normalise`` divides them by their deviation. ``first_order`` takes the
    adaptation's derivative for the identity.

    The choices of ``inner_loss`` all have the policy gradient where the rollouts were made, and differ in its
    derivative, which the adaptation's is made of. That of ``likelihood``, as in the authors' code, is far from the
    expected return's; that of ``ratio`` is near it and of low variance (Rothfuss et al. 2019, arXiv:1810.06784,
    equation 10); that of ``dice`` is unbiased (Foerster et al. 2018, arXiv:1802.05098, with advantages as by Farquhar
    et al. 2019, arXiv:1909.10549).
    ``exploration`` weighs the term that credits the rollouts before adaptation with the returns after it (E-MAML,
    Stadie et al. 2018, arXiv:1803.01118), with the other tasks' mean as its baseline; 0 leaves it out.

    At test, ``test_steps`` steps on ``test_rollouts`` episodes each, their sizes ``test_lr`` with the last repeated
    (null: ``inner_lr``). Where episodes end early, ``env_steps`` and ``test_env_steps`` ask for more of them: as many
    as make that many environment steps a task, on the mean of the tasks. The model must run with parameters
    ``[T, ...]``: build it of :class:`~metarun.models.policies.TaskLinear`. Parameters of T tasks are one matrix ``phi``
    [T, P].
    """

    roles: ClassVar[tuple[str, ...]] = ("policy",)
    optimizer: torch.optim.Optimizer | None = None

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        adapts: Literal["all", "head"],
        rollouts: Positive,
        env_steps: Positive | None,
        inner_steps: Count,
        inner_lr: Rate,
        inner_loss: Literal["likelihood", "ratio", "dice"],
        first_order: bool,
        exploration: NonNegative,
        test_rollouts: Positive,
        test_env_steps: Positive | None,
        test_steps: Count,
        test_lr: Sequence[Rate] | None,
        discount: Fraction,
        gae_lambda: Fraction,
        normalise: bool,
        outer: OuterStep,
    ) -> None:
        super().__init__()
        self.model, self.spec, self.outer = model, spec, outer
        self.episodes, self.env_steps = rollouts, env_steps
        self.inner_steps, self.inner_lr = inner_steps, inner_lr
        self.inner_loss_of, self.first_order, self.exploration = inner_loss, first_order, exploration
        self.test_rollouts, self.test_env_steps, self.test_steps = test_rollouts, test_env_steps, test_steps
        self.test_lr = list(test_lr or [inner_lr])
        self.discount, self.gae_lambda, self.normalise = discount, gae_lambda, normalise
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.adapts = adapts
        adapted = {name: adapts == "all" or name.startswith("head.") for name in self.shapes}
        require(any(adapted.values()), "algorithm.adapts=head: this model has no part of that name; use all")
        marks = [torch.full((self.shapes[name].numel(),), float(moves)) for name, moves in adapted.items()]
        self.register_buffer("adaptable", torch.cat(marks), persistent=False)
        outer.prepare(self)

    adaptable: Tensor
    """[P]: 1 for parameters that adapt, 0 for others."""

    # The policies

    def flat(self) -> Tensor:
        """The meta-learned initialisation, [P]."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def load(self, flat: Tensor) -> None:
        """The inverse of :meth:`flat`."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        with torch.no_grad():
            for parameter, part in zip(self.model.parameters(), parts, strict=True):
                parameter.copy_(part.view_as(parameter))

    def named(self, phi: Tensor) -> dict[str, Tensor]:
        """Parameters [T, ...] by name."""
        parts = phi.split([shape.numel() for shape in self.shapes.values()], dim=1)
        each = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(-1, *shape) for (name, shape), part in each}

    def policy(self, phi: Tensor, rollout: Rollout) -> Distribution:
        """Action distributions [T, E, S] of each task's policy at its rollouts' observations."""
        seen = rollout.observation
        output = call_with(self.named(phi), self.model, seen.flatten(1, 2))
        return distribution(self.spec, output.view(*seen.shape[:3], -1))

    def experience(
        self,
        env: Environment,
        phi: Tensor,
        episodes: int,
        generator: torch.Generator | None,
        env_steps: int | None = None,
    ) -> Experience:
        """Collect ``episodes`` rollouts of each task, or more for ``env_steps`` steps on average."""
        parameters = self.named(phi)

        def act(transition: Transition) -> Tensor:
            return self.repeat(call_with, parameters, self.model, transition.observation)

        rollout = collect(env, self.spec, act, episodes, 1, generator, self.repeat)
        if env_steps:
            an_episode = rollout.mask.sum().item() / (env.tasks * episodes)
            more = math.ceil(env_steps / an_episode) - episodes
            if more > 0:
                rollout = rollout.concatenate(collect(env, self.spec, act, more, 1, generator, self.repeat))
        return Experience(rollout, *self.repeat(self.credited, phi, rollout))

    @torch.no_grad()
    def credited(self, phi: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Return advantages and log-probabilities [T, E, S] of the actions, and the scale [T] of the advantages."""
        # A fit to an image's pixels would be of thousands of features: to images, time alone.
        seen = rollout.observation if len(self.spec.input_shape) == 1 else rollout.observation[..., :0]
        value = linear_baseline(seen, rollout.reward, rollout.mask, self.discount)
        advantage = gae(rollout.reward, value, rollout.mask, self.discount, self.gae_lambda)
        scale = advantage.new_ones(len(advantage))
        if self.normalise:
            advantage, scale = normalised(advantage, rollout.mask, (1, 2))
            scale = scale.flatten()
        return advantage, self.policy(phi, rollout).log_prob(rollout.action), scale

    # The inner loop

    def inner_loss(self, phi: Tensor, experience: Experience) -> Tensor:
        """Loss [T] that an inner step descends."""
        rollout, advantage, then = experience.rollout, experience.advantage, experience.logp
        if self.inner_loss_of == "ratio":
            return self.surrogate(phi, experience)
        logp = self.policy(phi, rollout).log_prob(rollout.action)
        if self.inner_loss_of == "likelihood":
            return -over_steps(logp * advantage, rollout)
        change = (logp - then) * rollout.mask
        until = change.cumsum(-1)
        return -over_steps((until.exp() - (until - change).exp()) * advantage, rollout)

    def surrogate(self, phi: Tensor, experience: Experience) -> Tensor:
        """Minus the mean advantage times the likelihood ratio to when the action was taken, [T]."""
        return -over_steps(self.ratio(phi, experience) * experience.advantage, experience.rollout)

    def ratio(self, phi: Tensor, experience: Experience) -> Tensor:
        """The likelihood of each action by its likelihood when it was taken, [T, E, S]."""
        rollout = experience.rollout
        return (self.policy(phi, rollout).log_prob(rollout.action) - experience.logp).exp()

    def inner_step(self, phi: Tensor, experience: Experience, lr: float) -> Tensor:
        """One policy-gradient step of every task, [T, P]; it can be differentiated if ``phi`` can."""
        differentiable = phi.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            start = phi if differentiable else phi.detach().requires_grad_()
            loss = self.inner_loss(start, experience).sum()
            (gradient,) = torch.autograd.grad(loss, start, create_graph=differentiable and not self.first_order)
        return (phi if differentiable else phi.detach()) - lr * self.adaptable * gradient

    def adapted(self, theta: Tensor, path: Sequence[Experience], tasks: int) -> list[Tensor]:
        """The parameters before and after each step that ``theta`` [P] takes on this experience, each [T, P]."""
        phis = [theta.expand(tasks, -1)]
        for experience in path:
            phis.append(self.inner_step(phis[-1], experience, self.inner_lr))
        return phis

    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        generator = env.generator()
        phi = self.flat().expand(env.tasks, -1)
        for step in range(self.test_steps + 1):
            experience = self.experience(env, phi, self.test_rollouts, generator, self.test_env_steps)
            yield experience.rollout
            if step < self.test_steps:
                lr = self.test_lr[min(step, len(self.test_lr) - 1)]
                phi = self.repeat(self.inner_step, phi, experience, lr)

    # The outer loop

    def exploration_loss(self, phis: Sequence[Tensor], path: Sequence[Experience], post: Experience) -> Tensor:
        """Return E-MAML's term, [T]: minus the log-likelihood of the actions before adaptation, times their credit.

        The credit is the return of an episode after adaptation minus the mean of the other tasks, divided by the mean
        length of an episode and by the scale of the advantages. These are the units of :meth:`surrogate`.
        """
        back = discounted(post.rollout.reward, self.discount)[..., 0].mean(1)
        tasks = len(back) * distributed.world_size()
        others = (distributed.average(back.sum()) * distributed.world_size() - back) / max(tasks - 1, 1)
        length = post.rollout.mask.sum((1, 2)) / back.new_full((), post.rollout.mask.shape[1])
        credit = (back - others) / (length * post.scale)
        logp = torch.zeros_like(back)
        for phi, experience in zip(phis, path, strict=False):
            rollout = experience.rollout
            logp = logp + (self.policy(phi, rollout).log_prob(rollout.action) * rollout.mask).sum((1, 2))
        return -credit * logp

    def outer_loss(
        self, theta: Tensor, path: Sequence[Experience], post: Experience, clip: float | None = None
    ) -> tuple[Tensor, list[Tensor], Distribution]:
        """Its mean over tasks at ``theta`` [P], the parameters around each inner step, and the adapted policies.

        The surrogate of the adapted policies on the experience after adaptation; ``clip`` is how far from 1 a ratio
        is rewarded (PPO).
        """
        phis = self.adapted(theta, path, len(post.advantage))
        policy = self.policy(phis[-1], post.rollout)
        ratio = (policy.log_prob(post.rollout.action) - post.logp).exp()
        gains = ratio * post.advantage
        if clip is not None:
            gains = torch.minimum(gains, ratio.clamp(1 - clip, 1 + clip) * post.advantage)
        losses = -over_steps(gains, post.rollout)
        if self.exploration:
            losses = losses + self.exploration * self.exploration_loss(phis, path, post)
        return losses.mean(), phis, policy

    def divergence(self, phi: Tensor, rollout: Rollout, old: Distribution) -> Tensor:
        """Mean KL(old || policy of ``phi``) over the steps of a rollout, [T]."""
        return over_steps(self.policy(phi, rollout).kl_from(old), rollout)  # type: ignore[arg-type]

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        self.train()
        generator = batch.generator()
        path: list[Experience] = []
        phi = self.flat().expand(batch.tasks, -1)
        for _ in range(self.inner_steps):
            path.append(self.experience(batch, phi, self.episodes, generator, self.env_steps))
            phi = self.repeat(self.inner_step, phi, path[-1], self.inner_lr)
        post = self.experience(batch, phi, self.episodes, generator, self.env_steps)
        metrics = self.outer.step(self, path, post)
        before = (path[0] if path else post).rollout.returns().mean()
        after = post.rollout.returns().mean()
        return {"return": batch.episodes * after, "return_before": batch.episodes * before, **metrics}

    def protocol(self) -> dict[str, Any]:
        return {
            "adapts": self.adapts,
            "inner_steps": self.inner_steps,
            "inner_lr": self.inner_lr,
            "inner_loss": self.inner_loss_of,
            "first_order": self.first_order,
            "exploration": self.exploration,
            "rollouts": self.episodes,
            "env_steps": self.env_steps,
            "test_rollouts": self.test_rollouts,
            "test_env_steps": self.test_env_steps,
            "test_steps": self.test_steps,
            "test_lr": self.test_lr,
            **self.outer.protocol(),
        }


def over_steps(values: Tensor, rollout: Rollout) -> Tensor:
    """Return each task's mean of ``values`` [T, E, S] over the steps of episodes, [T]."""
    return (values * rollout.mask).sum((1, 2)) / rollout.mask.sum((1, 2))
