"""The base class of baselines that are not meta-trained."""

from __future__ import annotations

from torch import nn

from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.tasks.episode import Spec


class Untrained(SupervisedAlgorithm):
    """A baseline without meta-training, the first base class of those that share a kind of task.

    Args:
        model: The model. It may embed inputs and is not trained.
        spec: Shapes of the task.
    """

    def __init__(self, model: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.model, self.spec = model.requires_grad_(False), spec
        self.optimizer = None
