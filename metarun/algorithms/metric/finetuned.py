"""An embedding that is fine-tuned on each test task (P>M>F)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.metric.head import Head
from metarun.algorithms.metric.learner import EmbeddingLearner
from metarun.algorithms.outer_optimizer import Adam
from metarun.algorithms.supervised import TASK_LOSS, Adapted
from metarun.errors import require
from metarun.tasks.episode import Labelled, Spec
from metarun.tasks.vision.base import jittered, shifted
from metarun.types import Count, Fraction, NonNegative, NormPolicy, Positive, Rate


class FineTunedEmbedding(EmbeddingLearner):
    """P>M>F: an embedding is pretrained, meta-trained with its head, and fine-tuned on each test task (Hu et al. 2022,
    arXiv:2204.07305).

    Meta-training is that of :class:`EmbeddingLearner`. On a test task, ``test_steps`` steps of Adam at ``inner_lr``
    change the trained parameters of the model. At each step the head is fitted to the embedded support set and
    classifies the support set again, whose images are augmented for it: shifted by up to ``shift`` of their size,
    mirrored with probability 1/2 if ``flip``, and with brightness, contrast and saturation multiplied by factors
    between 1 - ``jitter`` (at least 0) and 1 + ``jitter``. Other inputs are classified as they are.

    The head stays as it was meta-trained, and so do the statistics of normalisation under ``norm=running``. The authors
    leave one step in ten without augmentation, and choose the step size, or not to fine-tune, on validation tasks.

    Raises:
        UserError: No parameter of the model is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        head: Head,
        inner_lr: Rate,
        test_steps: Count,
        shift: Fraction,
        flip: bool,
        jitter: NonNegative,
        train_way: Positive | None,
        train_shot: Positive | None,
        train_query: Positive | None,
        norm: NormPolicy,
        outer_lr: Rate,
        halve_every: Positive | None,
    ) -> None:
        require(
            any(p.requires_grad for p in model.parameters()),
            "algorithm=pmf: the model has no parameters there to adapt; of a pretrained encoder, model.tune=norm, lora "
            "or all trains some",
        )
        super().__init__(
            model, spec, head=head, train_way=train_way, train_shot=train_shot, train_query=train_query, norm=norm,
            outer_lr=outer_lr, halve_every=halve_every,
        )  # fmt: skip
        self.inner_lr, self.test_steps = inner_lr, test_steps
        self.shift, self.flip, self.jitter = shift, flip, jitter

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        each: list[Adapted] = []
        for one in support.singly():
            tuned = self._tuned(one, self.test_steps if steps is None else steps)
            each.extend(EmbeddingLearner.adaptations(tuned, one))
        yield lambda x: torch.cat([adapted(x[task : task + 1]) for task, adapted in enumerate(each)])

    def prototype_distance(self, support: Labelled) -> Adapted | None:
        return None  # of the embedding before fine-tuning

    def _tuned(self, support: Labelled, steps: int) -> FineTunedEmbedding:
        """Return a copy whose model is fine-tuned on the support set of one task: x [1, N, ...], y [1, N]."""
        tuned = copy.copy(self)
        tuned._modules = {**self._modules, "model": copy.deepcopy(self.model)}
        trained = [p for p in tuned.model.parameters() if p.requires_grad]
        optimizer = Adam(trained, lr=self.inner_lr)
        for _ in range(steps):
            with torch.enable_grad():
                (adapted,) = EmbeddingLearner.adaptations(tuned, support)
                prediction = adapted(self.augmented(support.x))
                loss = TASK_LOSS[self.spec.kind](prediction.flatten(0, 1), support.y.flatten(0, 1))
                optimizer.zero_grad()
                loss.backward(inputs=trained)
            optimizer.step()
        return tuned

    def augmented(self, x: Tensor) -> Tensor:
        """Return images [1, N, C, H, W] augmented, each by its own random numbers; other inputs as they are."""
        if self.spec.modality != "image" or x.dim() != 5:
            return x
        reach = round(self.shift * x.shape[-1])
        shifts = torch.randint(-reach, reach + 1, (*x.shape[:2], 2), device=x.device)
        mirrored = torch.rand(x.shape[:2], device=x.device) < 0.5 if self.flip else None
        x = shifted(x, shifts, mirrored, reach)
        if not self.jitter:
            return x
        factors = torch.rand(*x.shape[:2], 3, device=x.device, dtype=torch.get_default_dtype())
        return jittered(x, (1 + self.jitter * (2 * factors - 1)).clamp_min(0))

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "inner_lr": self.inner_lr, "test_steps": self.test_steps}
