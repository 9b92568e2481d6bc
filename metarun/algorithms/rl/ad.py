"""Algorithm distillation: a causal model of learning histories acts as the learner that made them, and then better."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.outer_optimizer import Adam, Schedule
from metarun.algorithms.rl.advantage import masked_mean
from metarun.algorithms.rl.base import TrialLearner
from metarun.algorithms.rl.collect import Act, Transition
from metarun.algorithms.rl.distributions import distribution
from metarun.errors import UserError
from metarun.models.roles import RecurrentPolicy
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.histories import Histories
from metarun.tasks.to_device import to_device
from metarun.types import Count, DataPath, Decay, Positive, Rate


class SlidingAgent:
    """An agent with a recurrent policy that reads at most the last ``context`` steps of a trial.

    When they are full, the policy reads the later half of them anew, as the beginning of a trial.
    """

    def __init__(self, model: RecurrentPolicy, context: int) -> None:
        self.model, self.context = model, context
        self.recent: list[Tensor] = []
        self.state: list[Any] = []

    def __call__(self, transition: Transition) -> Tensor:
        self.recent.append(self.model.encode(*transition).flatten(0, 1))
        new = self.recent[-1:]
        if len(self.recent) > self.context:
            new = self.recent = self.recent[-(self.context // 2 + 1) :]
            self.state = []
        output, _, *self.state = self.model(torch.stack(new), *self.state)
        return output[-1].view(*transition.previous_reward.shape, -1)


class AlgorithmDistillation(TrialLearner):
    """Algorithm distillation (Laskin et al. 2022, arXiv:2210.14215, equation 3).

    The policy predicts each action of a learning history from the steps before it, over windows of ``context`` steps
    that span several episodes. Histories are those of learners of single tasks, so that actions get better from early
    episodes to late ones; imitating them means to learn. ``metarun collect`` writes them to a folder, of which a window
    is all that is read at a time. An outer step draws as many windows as a meta-batch has tasks, at random from all
    tasks, streams and places, and takes a step of Adam on the mean negative log-likelihood, the gradient clipped to
    ``max_grad_norm``. The tasks of the meta-batch themselves are not used. ``first_loss`` and ``last_loss`` are those
    of the first and the last quarter of the windows: the second is lower if the policy uses its context.

    At test the agent acts in trials of any number of episodes, and its parameters stay as they are.

    Args:
        model: The policy.
        spec: Description of the task family.
        histories: The folder of the histories; null: the learner can be evaluated and not trained.
        context: Steps that the policy reads.
        every: Episodes of a stream of which one is read, at random from where. Learners often improve so slowly that
            a context hardly spans any learning; without the episodes between it spans ``every`` times as much.
        test_rollouts: Trials of each task at test.
        max_grad_norm: Largest norm of a gradient.
        outer_lr: Learning rate of Adam.
        decay_over: Iterations over which it falls to 0; null: it does not.
        decay: Schedule of ``decay_over``.
    """

    roles: ClassVar[tuple[str, ...]] = ("recurrent_policy",)
    model: RecurrentPolicy  # type: ignore[assignment]
    needs_full_meta_batch = True

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        histories: DataPath | None,
        context: Positive,
        test_rollouts: Positive,
        max_grad_norm: Rate,
        outer_lr: Rate,
        decay_over: Count | None,
        decay: Decay,
        every: Positive = 1,
    ) -> None:
        super().__init__(model, spec, test_rollouts)
        self.folder, self.context, self.every, self.max_grad_norm = histories, context, every, max_grad_norm
        self.histories: Histories | None = None
        self.schedule = Schedule(outer_lr, decay_over=decay_over, decay=decay)
        self.model.value.requires_grad_(False)
        self.optimizer = Adam([p for p in self.parameters() if p.requires_grad], lr=outer_lr)

    def agent(self, env: Environment) -> Act:
        return SlidingAgent(self.model, self.context)

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        if self.histories is None:
            if self.folder is None:
                raise UserError(
                    "algorithm.histories=null: algorithm distillation learns from stored learning histories   to make "
                    "some: metarun collect task=... algorithm=pretrain_trpo model=mlp_policy --out DIR"
                )
            self.histories = Histories(Path(self.folder).expanduser(), self.spec, self.every)
        self.train()
        self.schedule.apply(self.optimizer, iteration)
        dtype = torch.get_default_dtype()
        windows = [to_device(part, batch.device, dtype) for part in self.histories.windows(batch.tasks, self.context)]
        logp, mask = self.likelihood(*windows)
        loss = -masked_mean(logp, mask)
        self.optimizer.zero_grad()
        loss.backward()
        parameters = [p for p in self.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.optimizer.step()
        few = -(-self.context // 4)
        parts = {"first_loss": slice(few), "last_loss": slice(-few, None)}
        each = {name: -masked_mean(logp[part].detach(), mask[part]) for name, part in parts.items()}
        return {"loss": loss.detach(), **each, "gradient_norm": norm}

    def likelihood(
        self, observation: Tensor, action: Tensor, reward: Tensor, mask: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the log-likelihood of each action and whether it counts, [S, B]; windows as by :class:`Histories`."""
        taken = action[..., 0].long() if self.spec.discrete_actions else action
        before = Transition(observation[1:], observation[:-1], taken[:-1], reward[:-1, :, 0], done[1:, :, 0] > 0)
        features = self.model.features(self.model.encode(*before))[0]
        logp = distribution(self.spec, self.model.head(features)).log_prob(taken[1:])
        return logp, mask[1:, :, 0] > 0

    def protocol(self) -> dict[str, Any]:
        return {"trials": self.test_rollouts, "optimizer": "supervised", "context": self.context, "every": self.every}
