"""The base class of task families: a distribution over tasks that returns batches of them by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.errors import require
from metarun.tasks.episode import EpisodeShape, Kind, Labelled, Spec, TaskBatch
from metarun.tasks.record import DataRecord
from metarun.types import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

__all__ = ["EpisodeShape", "Kind", "Labelled", "Spec", "Task", "TaskBatch"]


class Task(ABC):
    """A task family: a distribution over tasks, split into meta-train, meta-validation and meta-test.

    **The contract**: :meth:`batch` is a pure function of ``(self.seed, split, indices, shape)``.
    """

    kind: ClassVar[str]
    modality: ClassVar[str]
    metric: ClassVar[str]
    """The name under which algorithms report what this family is judged by."""
    higher_is_better: ClassVar[bool] = True

    held_out_val: bool = True
    """Whether the validation split shares nothing with the meta-train split, so that a learner can be chosen on it."""
    seed: int
    spec: Spec
    shape: EpisodeShape | None = None
    """The episode that is evaluated; ``None`` where episodes have no such shape (control)."""
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Any:
        """Tasks number ``indices`` of ``split``: a :class:`TaskBatch`, or a batched environment for control."""

    def prepare(self, model: torch.nn.Module) -> None:
        """Let ``model`` encode the inputs, for families whose inputs a model encodes, such as texts.

        Called after the model is built, and again when a checkpoint has changed how it encodes.
        """

    def to(self, device: torch.device) -> Self:
        """Keep the data on ``device`` from now on."""
        self.device = device
        return self

    def variants(self) -> dict[str, EpisodeShape | None]:
        """The shapes that are tested: ``{"": the task's own}`` and, with a name suffix, any further ones."""
        return {"": self.shape}

    def check(self, split: Split, shape: EpisodeShape) -> None:
        """Raise :class:`~metarun.errors.UserError` if ``split`` cannot serve episodes of ``shape``."""

    def remarks(self) -> list[str]:
        """What a user should know of the data before trusting a result: what was read, left out, or is there twice."""
        return []

    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare a number of this family: split, way, shot, preprocessing."""
        return {}

    def record(self) -> DataRecord:
        """Which classes its splits have and what they hold: kept with a run, compared when it is resumed or evaluated.

        Families whose splits depend on files, or on keys such as ``split_seed``, say so here.
        """
        return DataRecord()

    def class_names(self) -> Sequence[str]:
        """All classes of the data, those of no split included."""
        return sorted(self.record().names)

    def keep_classes(self, classes: Mapping[Split, Sequence[str]]) -> None:
        """Take these classes for each split, by their names, in this order. All of them are in the data."""
        require(self.record().classes == classes, f"{type(self).__name__} cannot take the splits of an earlier run")

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Known reference values of the metric on these tasks (oracle, random, optimum), where there are any."""
        return {}

    def picture(self, learner: Any) -> Figure | None:
        """Draw what was learned, on test tasks; ``None`` if the family has no picture.

        Args:
            learner: The trained algorithm. A family declares the part that it uses as a
                :class:`~metarun.tasks.learner.Learner` or :class:`~metarun.tasks.learner.RLLearner`.
        """
        return None

    def film(self, learner: Any) -> list[NDArray[np.uint8]] | None:
        """Film what was learned on a test task: frames [height, width, 3]; ``None`` if the family has no film."""
        return None
