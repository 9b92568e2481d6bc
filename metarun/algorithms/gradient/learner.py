"""The gradient learner, assembled from a model and the four exchangeable pieces."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from metarun.algorithms.functional import is_known
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner
from metarun.algorithms.gradient.pieces import AdaptedParameters, InnerLoss, OuterGradient, Rule
from metarun.algorithms.supervised import dry_run, with_head
from metarun.kernels.mode import REPLACED
from metarun.models.norm import set_policy
from metarun.moved import in_words
from metarun.tasks.episode import Spec
from metarun.types import Count, Decay, Positive, Rate

MAX_CAPTURED_STEPS = 32
"""Largest number of inner steps of a recorded outer step. The recording and the time to make it grow with them."""


class GradientLearner(InnerLoopLearner):
    """Gradient-based meta-learning: a few gradient steps from meta-learned parameters adapt to a task.

    The model gets a linear head. On a task with support set S and query set Q, the parameters chosen by ``adapts``
    start at phi_0, usually the meta-parameters theta themselves, and take ``inner_steps`` steps

        phi_k+1 = phi_k + u(g_k),   g_k = gradient of l(phi_k; S)

    of the ``rule`` u on the inner ``loss`` l, a mean over the support set. ``outer`` computes the outer gradient from
    the adapted phi_K and Q, with respect to theta and to the learned parameters of the pieces. MAML (Finn, Abbeel &
    Levine 2017, arXiv:1703.03400, Algorithm 2) adapts all parameters by SGD on the task's loss and unrolls the steps.

    ``inner_lr`` is the step size of the rule, or the initial one if it is learned. ``test_steps`` steps are taken on
    test tasks. ``inner_steps=0`` is joint pre-training on all tasks. A step uses the whole support set, or
    ``inner_batch`` (at test ``test_batch``) of its examples. The outer optimizer is Adam or gradient descent
    (``outer_optimizer``) with learning rate ``outer_lr``, halved every ``halve_every`` iterations or decaying to 0 over
    ``decay_over`` iterations, linearly or by a cosine (``decay``). ``head_init`` is the standard deviation of the
    head's initial weights (null: torch's initialisation). ``train_shot`` and ``train_query`` are the sizes of episodes
    in meta-training, if they differ. ``norm`` is ``transductive``, ``support`` or ``frozen``. Averages that go on
    changing have no meaning for parameters that differ from task to task.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        adapts: AdaptedParameters,
        rule: Rule,
        loss: InnerLoss,
        outer: OuterGradient,
        inner_lr: Rate,
        inner_steps: Count,
        inner_batch: Positive | None,
        test_steps: Count,
        test_batch: Positive | None,
        norm: Literal["transductive", "support", "frozen"],
        head_init: Rate | None,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_optimizer: Literal["adam", "sgd"],
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        self.spec, self.norm = spec, norm
        self.inner_lr = inner_lr
        self.inner_steps, self.inner_batch = inner_steps, inner_batch
        self.test_steps, self.test_batch = test_steps, test_batch
        self.train_shot, self.train_query = train_shot, train_query
        self.net = with_head(model, spec, spec.output_size, head_init)
        set_policy(self.net, norm)
        self.adapts, self.rule, self.loss, self.outer = adapts, rule, loss, outer
        self.adapted_names, self.any_way = adapts.attach(self.net, spec), adapts.any_way
        adapts.prepare(self)
        rule.prepare(self.meta_learned(), inner_lr, inner_steps)
        loss.prepare(spec)
        outer.prepare(self)
        with _Calls() as calls:
            dry_run(model, spec)
        self.batchable = not calls.unbatchable and getattr(model, "batchable", True)
        self.has_replaced_layers = calls.replaced or not is_known(self)
        self.needs_full_meta_batch = rule.carries or outer.needs_full_meta_batch
        self.learn_with(outer_lr, halve_every, decay_over, decay, outer_optimizer)

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        """The model without the head."""
        return self.net[0]

    @property
    def is_capturable(self) -> bool:
        return self.outer.is_capturable and self.inner_steps <= MAX_CAPTURED_STEPS

    def protocol(self) -> dict[str, Any]:
        pieces = {"adapts": self.adapts, "rule": self.rule, "loss": self.loss, "outer": self.outer}
        return {
            "norm": self.norm,
            "inner_steps": self.inner_steps,
            "test_steps": self.test_steps,
            "inner_lr": self.inner_lr,
            **{name: in_words(f"{type(piece).__name__}({piece.extra_repr()})") for name, piece in pieces.items()},
        }


UNTRUSTED = ("batch_norm", "layer_norm", "instance_norm", "group_norm", "lstm", "gru", "rnn_tanh", "rnn_relu")


class _Calls(TorchFunctionMode):
    """Notes what a network calls.

    Attributes:
        unbatchable: True if it calls operations that are wrong or missing under ``vmap``. torch's own batch, layer and
            instance normalisation silently give wrong second-order gradients there; ``metarun.kernels`` replaces all of
            these but instance normalisation. Recurrent kernels have no batching rule.
        replaced: True if it calls operations that ``metarun.kernels`` replaces. Rectifiers alone need no replacement.
    """

    unbatchable = False
    replaced = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.unbatchable |= func not in REPLACED and getattr(func, "__name__", "").endswith(UNTRUSTED)
        self.replaced |= func in REPLACED and func not in (F.relu, torch.relu)
        return func(*args, **(kwargs or {}))
