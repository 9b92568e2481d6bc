"""The base class of task families: a distribution over tasks that returns batches of them by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.errors import require
from metarun.tasks.episode import EpisodeShape, Kind, Labelled, Spec, TaskBatch
from metarun.tasks.record import DataRecord
from metarun.types import Split

if TYPE_CHECKING:
    from typing import Self

    from matplotlib.figure import Figure

__all__ = ["EpisodeShape", "Kind", "Labelled", "Spec", "Task", "TaskBatch"]


class Task(ABC):
    """The base class of task families: a distribution over tasks with meta-train, meta-validation and meta-test splits.

    A family sets the class attributes below, sets :attr:`seed` and :attr:`spec` in its constructor, and implements
    :meth:`batch`. Every other method has a default.

    **Contract**: :meth:`batch` is a pure function of ``(self.seed, split, indices, shape)``. It draws all random
    numbers from :mod:`metarun.tasks.rng`, so that an episode is the same on every device, for any number of processes
    and after any resume.

    Attributes:
        kind: The kind of problem, one of :data:`~metarun.tasks.episode.Kind`. Algorithms list the kinds that they
            support.
        modality: The type of an input, such as ``image``, ``text`` or ``vector``. Models list those that they read.
        metric: Name of the metric that selects the best checkpoint and that results report.
        higher_is_better: True if a larger value of :attr:`metric` is better.
        held_out_val: True if the validation split shares no task with the meta-train split, so that checkpoints can be
            selected on it.
        independent_tasks: True if each task of a batch is the same to the bit, whatever other tasks the batch has.
            Training then draws several meta-batches at once, which saves time where tasks are small. A subclass has to
            set it again, since it may draw its tasks in another way.
        simulated_on_host: True if a library on the CPU simulates its environments, whatever the device of the run.
        tested_together: Number of consecutive validation or test tasks that share a random quantity, such as their
            number of points. Confidence intervals count them as one.
        seed: Seed of all episodes.
        spec: Shapes and sizes from which models and algorithms are built.
        shape: Size of the evaluated episodes; ``None`` for families without support and query sets (RL).
        device: Device on which batches are returned.
    """

    kind: ClassVar[str]
    modality: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    independent_tasks: ClassVar[bool] = False
    simulated_on_host: ClassVar[bool] = False

    held_out_val: bool = True
    tested_together: int = 1
    seed: int
    spec: Spec
    shape: EpisodeShape | None = None
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Any:
        """Return the tasks with the given indices.

        Args:
            split: ``train``, ``val`` or ``test``.
            indices: Numbers of the tasks, from 0 on. Each names the same task in every call.
            shape: Size of the episodes; :attr:`shape` if omitted.

        Returns:
            A :class:`TaskBatch` of ``len(indices)`` tasks on :attr:`device`, or a batched
            :class:`~metarun.tasks.rl.base.Environment` in RL families.
        """

    def batches(
        self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None
    ) -> Iterator[tuple[list[int] | slice, Any]]:
        """Yield the tasks with the given indices in groups whose tasks have the same sizes.

        Args:
            split: ``train``, ``val`` or ``test``.
            indices: Numbers of the tasks.
            shape: Size of the episodes; :attr:`shape` if omitted.

        Yields:
            The places of the group's tasks among ``indices``, and their batch. Families whose tasks all have the same
            sizes yield one group.
        """
        yield slice(None), self.batch(split, indices, shape)

    def prepare(self, model: torch.nn.Module) -> None:
        """Encode the inputs with ``model``. Only families whose inputs a model encodes, such as texts, override this.

        It is called once the model is built, and again when a loaded checkpoint has changed the model's encoding.

        Args:
            model: A model with a method ``encode``.
        """

    def to(self, device: torch.device) -> Self:
        """Move the data to a device.

        Args:
            device: Device on which :meth:`batch` then returns tensors.

        Returns:
            The family itself.
        """
        self.device = device
        return self

    def variants(self) -> dict[str, EpisodeShape | None]:
        """Return the tested episode shapes by metric suffix: ``{"": self.shape}`` and any further ones, such as
        ``_20way``.
        """
        return {"": self.shape}

    def check(self, split: Split, shape: EpisodeShape) -> None:
        """Check that a split has enough data for episodes.

        Args:
            split: ``train``, ``val`` or ``test``.
            shape: Size of the episodes.

        Raises:
            UserError: The split is too small. The message names the key to change and the largest possible value.
        """

    def remarks(self) -> list[str]:
        """Return notes that a user should read before trusting a result, such as rows read, rows skipped and
        duplicates.
        """
        return []

    def protocol(self) -> dict[str, Any]:
        """Return the facts needed to compare a result of this family with another: data, split, way, shot,
        preprocessing.
        """
        return {}

    def record(self) -> DataRecord:
        """Return the classes of each split and hashes of their examples.

        The record is stored with a run and compared when the run is resumed or evaluated. Families whose splits depend
        on files, or on keys such as ``split_seed``, override this.
        """
        return DataRecord()

    def class_names(self) -> Sequence[str]:
        """Return the names of all classes in the data, including classes that belong to no split."""
        return sorted(self.record().names)

    def keep_classes(self, classes: Mapping[Split, Sequence[str]]) -> None:
        """Replace the classes of each split.

        Args:
            classes: Names of the classes of each split, in label order. All of them must be in the data.

        Raises:
            UserError: The family has fixed splits that differ from ``classes``.
        """
        require(self.record().classes == classes, f"{type(self).__name__} cannot take the splits of an earlier run")

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return reference values of the metric on these tasks, such as those of an oracle, a random policy or the
        optimum.

        Args:
            split: ``train``, ``val`` or ``test``.
            indices: Numbers of the tasks.

        Returns:
            Mean over the tasks by name of the reference; empty if none is known.
        """
        return {}

    def picture(self, learner: Any) -> Figure | None:
        """Plot the adapted learner on a few test tasks.

        Args:
            learner: The trained algorithm. A family declares the part that it uses as a
                :class:`~metarun.tasks.learner.Learner` or :class:`~metarun.tasks.learner.RLLearner`.

        Returns:
            A figure, or ``None`` if the family has no plot.
        """
        return None

    def film(self, learner: Any) -> list[NDArray[np.uint8]] | None:
        """Record a video of the adapted learner on a test task.

        Args:
            learner: The trained algorithm, as in :meth:`picture`.

        Returns:
            Frames [height, width, 3], or ``None`` if the family has no video.
        """
        return None
