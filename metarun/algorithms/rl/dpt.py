"""Decision-pretrained transformers: supervised learning of optimal actions from the history of a trial."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.outer_optimizer import Adam, Schedule
from metarun.algorithms.rl.advantage import masked_mean
from metarun.algorithms.rl.base import TrialLearner, by_step
from metarun.algorithms.rl.collect import Act, Transition, collect
from metarun.algorithms.rl.ppo import descend
from metarun.algorithms.rl.rl2 import RecurrentAgent
from metarun.errors import require
from metarun.models.roles import RecurrentPolicy
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.recording import ExpertEnv
from metarun.types import Count, Decay, Fraction, Positive, Rate


class Explorer(RecurrentAgent):
    """Takes the policy's actions in a share ``on_policy`` of the trials, the first ones, and random ones in the others.

    A random trial draws from (1 - c) p + c e with p ~ Dirichlet(1, .., 1), e a random action and c from 0, .1, .., 1.
    """

    def __init__(self, model: RecurrentPolicy, actions: int, on_policy: float) -> None:
        super().__init__(model)
        self.actions, self.on_policy, self.logits = actions, on_policy, torch.empty(0)

    def __call__(self, transition: Transition) -> Tensor:
        shape, like = transition.previous_reward.shape, transition.observation
        if not self.inputs:
            shares = like.new_empty(shape.numel(), self.actions).exponential_()
            single = torch.rand_like(shares)
            single = (single == single.amax(-1, keepdim=True)).to(shares.dtype)
            c = torch.randint(11, (len(shares), 1), device=like.device) / 10
            self.logits = ((1 - c) * shares / shares.sum(-1, keepdim=True) + c * single).clamp_min(1e-30).log()
        self.inputs.append(self.model.encode(*transition).flatten(0, 1))
        if own := round(self.on_policy * shape.numel()):
            output, _, *self.state = self.model(self.inputs[-1][None, :own], *self.state)
            return torch.cat([output[0], self.logits[own:]]).view(*shape, -1)
        return self.logits.view(*shape, -1)


class OfflineAgent(RecurrentAgent):
    """Takes uniformly random actions for ``context`` steps, and the policy's most probable ones from then on."""

    def __init__(self, model: RecurrentPolicy, actions: int, context: int) -> None:
        super().__init__(model)
        self.actions, self.context = actions, context

    def __call__(self, transition: Transition) -> Tensor:
        if len(self.inputs) < self.context:
            self.inputs.append(self.model.encode(*transition).flatten(0, 1))
            return transition.observation.new_zeros(*transition.previous_reward.shape, self.actions)
        if self.inputs and not self.state:
            _, _, *self.state = self.model(torch.stack(self.inputs))
        output = super().__call__(transition)
        return (output == output.amax(-1, keepdim=True)).to(output.dtype).clamp_min(1e-30).log()


class DPT(TrialLearner):
    """Decision-pretrained transformer (Lee et al. 2023, arXiv:2306.14892, equation 2).

    The policy predicts an optimal action of an agent that knows the task from the history of the trial, at every step.
    The environments tell it in meta-training (``spec.has_expert``). Sampling from the prediction is then posterior
    sampling, Thompson sampling on bandits (their section 6).

    A meta-batch is ``rollouts`` trials of each task. The policy acts in a share ``on_policy`` of them; in the others,
    actions are random, with their own probabilities in each trial as in the authors' bandits. Since actions depend on
    the task through the history alone, the best prediction given a history is the same in both. Adam minimises the mean
    cross-entropy over all steps in ``epochs`` passes of ``minibatches`` parts, gradients clipped to ``max_grad_norm``.

    Unlike the authors', a history is in order and includes the current episode, and all optimal actions are labels, not
    the first alone: posterior sampling then explores dark rooms twice as fast.

    At test, actions are sampled at ``temperature`` (1: posterior sampling) without a given context. ``offline_return``
    is that of the last episode, with the most probable actions, after random ones in all others.
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
        on_policy: Fraction,
        temperature: Rate,
        epochs: Positive,
        minibatches: Positive,
        max_grad_norm: Rate,
        outer_lr: Rate,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        require(
            spec.has_expert,
            "algorithm=dpt learns from optimal actions, which this task does not tell; what fits: task=rl/bandit, "
            "rl/mdp, rl/gridnavi, rl/darkroom   or algorithm=rl2",
        )
        super().__init__(model, spec, test_rollouts)
        self.trials, self.on_policy, self.temperature = rollouts, on_policy, temperature
        self.epochs, self.minibatches, self.max_grad_norm = epochs, minibatches, max_grad_norm
        self.schedule = Schedule(outer_lr, decay_over=decay_over, decay=decay)
        self.model.value.requires_grad_(False)
        self.optimizer = Adam([p for p in self.parameters() if p.requires_grad], lr=outer_lr)

    def agent(self, env: Environment) -> Act:
        agent = RecurrentAgent(self.model, self.repeat)
        return lambda transition: agent(transition) / self.temperature

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        self.train()
        self.schedule.apply(self.optimizer, iteration)
        expert = ExpertEnv(batch)
        agent = Explorer(self.model, self.spec.output_size, self.on_policy)
        rollout = collect(expert, self.spec, agent, self.trials, batch.episodes, batch.generator())
        inputs, optimal = torch.stack(agent.inputs), by_step(torch.stack(expert.optimal, 2))
        mask = by_step(rollout.mask)
        loss, gradient_norm = descend(
            lambda chosen: self.backward(self.loss, inputs[:, chosen], optimal[:, chosen], mask[:, chosen]),
            inputs.shape[1], self.optimizer,
            epochs=self.epochs, minibatches=self.minibatches, max_grad_norm=self.max_grad_norm,
        )  # fmt: skip
        return {"loss": loss, "return": rollout.returns().mean(), "gradient_norm": gradient_norm}

    def loss(self, inputs: Tensor, optimal: Tensor, mask: Tensor) -> Tensor:
        """Return the cross-entropy [] of optimal actions [S, B, A] given the histories [S, B, ...] of B trials."""
        logp = self.model.head(self.model.features(inputs)[0]).log_softmax(-1)
        target = optimal.to(logp.dtype)
        return -masked_mean((target * logp).sum(-1) / target.sum(-1), mask)

    def evaluate(self, batch: Environment) -> Metrics:
        found = super().evaluate(batch)
        agent = OfflineAgent(self.model, self.spec.output_size, (batch.episodes - 1) * batch.horizon)
        rollout = collect(batch, self.spec, agent, self.test_rollouts, batch.episodes, batch.generator())
        found["offline_return"] = rollout.episode(-1, batch.horizon).returns().mean(1, keepdim=True)
        return found

    def protocol(self) -> dict[str, Any]:
        return {"trials": self.test_rollouts, "optimizer": "supervised", "temperature": self.temperature}
