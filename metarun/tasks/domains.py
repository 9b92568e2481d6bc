"""Several few-shot families of one kind of input as one: meta-training on some of them, tests on others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.errors import nearest, require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.fewshot import FewShot, check_test_ways
from metarun.tasks.record import DataRecord
from metarun.tasks.rng import uniforms
from metarun.types import Count, Episodes, Positive, Split


class DomainSet:
    """The domains of a family, by name.

    Args:
        domains: Few-shot families.
    """

    def __init__(self, **domains: Any) -> None:
        self.domains: dict[str, Any] = domains


class Domains(Task):
    """Few-shot classification of images of several domains.

    Each task is of one domain. Meta-training and validation tasks are of the ``train`` domains and their meta-train and
    validation classes, test tasks of the ``test`` domains and their test classes; the domain of a task is drawn
    uniformly. A result has each metric over all test tasks, and for each of several test domains again on tasks of that
    domain alone (``accuracy_omniglot``). Images of all domains must have one size and colour.

    Args:
        seed: Seed of the episodes.
        domains: The domains, each with its own data, split, preprocessing and augmentation. Their own ``way``, ``shot``
            and so on have no effect.
        train: Names of the domains to meta-train and validate on; ``None``: all.
        test: Names of the domains to test on; ``None``: all.
        way: Classes of an episode.
        shot: Support images of a class.
        query: Query images of a class.
        test_ways: Further ways to test at the same shot, on tasks of all test domains.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset.

    Raises:
        UserError: A name is no domain, or inputs or sizes do not fit.
    """

    kind: ClassVar[str] = "classification"
    modality: ClassVar[str] = "image"
    metric: ClassVar[str] = "accuracy"

    def __init__(
        self,
        seed: int,
        *,
        domains: DomainSet,
        train: Sequence[str] | None,
        test: Sequence[str] | None,
        way: Positive,
        shot: Positive,
        query: Count,
        test_ways: Sequence[Positive],
        unknown: Count,
        episodes: Episodes,
    ) -> None:
        self.seed, self.domains = seed, domains.domains
        for name, domain in self.domains.items():
            require(
                isinstance(domain, FewShot) and domain.modality == self.modality,
                f"task.domains: '{name}' is no family of few-shot classification of {self.modality}s",
            )
        self.trained, self.tested = self._named("train", train), self._named("test", test)
        self.shape: EpisodeShape = EpisodeShape(way, shot, query, unknown=unknown, varied=episodes == "varied")
        self.test_ways = tuple(test_ways)
        first, *others = self.domains
        size = self.domains[first].spec.input_shape
        for other in others:
            found = self.domains[other].spec.input_shape
            require(
                found == size,
                f"task.domains: images [channels, height, width] are {list(size)} in '{first}' and {list(found)} in "
                f"'{other}'; keys such as task.domains.{other}.size make them equal",
            )
        self.held_out_val = all(self.domains[name].held_out_val for name in self.trained)
        for domain in self.domains.values():
            domain.shape = self.shape
        self._describe()

    def _named(self, key: str, names: Sequence[str] | None) -> list[str]:
        """Return the domains that a key names."""
        for name in names or ():
            require(name in self.domains, f"task.{key}: no domain '{name}'{nearest(name, [*self.domains])}")
        require(names is None or len(set(names)) == len(names) > 0, f"task.{key}={names}: name each domain once")
        return list(self.domains if names is None else names)

    def _describe(self) -> None:
        """Set the spec, and check the shapes of episodes."""
        classes = sum(len(self.domains[name].classes["train"]) for name in self.trained)
        size = next(iter(self.domains.values())).spec.input_shape
        self.spec = Spec("classification", self.modality, size, self.shape.way, train_classes=classes)
        self.check("train", replace(self.shape, unknown=0))
        for split in ("val", "test"):
            self.check(split, self.shape)
        check_test_ways(self, self.shape, self.test_ways)

    def _of(self, split: Split, shape: EpisodeShape) -> list[str]:
        """Return the names of the domains that tasks are of."""
        if shape.domain is not None:
            return [shape.domain]
        return self.tested if split == "test" else self.trained

    def check(self, split: Split, shape: EpisodeShape) -> None:
        for name in self._of(split, shape):
            self.domains[name].check(split, replace(shape, domain=None))

    def _shares(
        self, split: Split, indices: Sequence[int], shape: EpisodeShape
    ) -> Iterator[tuple[str, list[int], list[int]]]:
        """Yield each domain that has some of the tasks, with their places among ``indices`` and their numbers."""
        names = self._of(split, shape)
        drawn = np.floor(len(names) * uniforms(self.seed, split, indices, 1, stream=12)[:, 0])
        for number, name in enumerate(names):
            places = np.flatnonzero(drawn == number).tolist()
            if places:
                yield name, places, [indices[place] for place in places]

    def batches(
        self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None
    ) -> Iterator[tuple[list[int] | slice, TaskBatch]]:
        shape = shape or self.shape
        if not shape.varied:
            yield from super().batches(split, indices, shape)
            return
        for name, places, numbers in self._shares(split, indices, shape):
            for inner, batch in self.domains[name].batches(split, numbers, replace(shape, domain=None)):
                yield [places[place] for place in inner], batch

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        order: list[int] = []
        parts: list[TaskBatch] = []
        for name, places, numbers in self._shares(split, indices, shape):
            order += places
            part = self.domains[name].batch(split, numbers, replace(shape, domain=None))
            parts.append(self._renumbered(part, name) if shape.named else part)
        if len(parts) == 1:
            return parts[0]
        back = torch.tensor(np.argsort(order), device=self.device)

        def joined(get: Callable[[TaskBatch], Labelled]) -> Labelled:
            each = [get(part) for part in parts]
            x, y = (torch.cat([_floats(getattr(one, key), each, key) for one in each])[back] for key in ("x", "y"))
            return Labelled(x, y, each[0].way)

        support = joined(lambda part: part.support)
        query = support if parts[0].query is parts[0].support else joined(lambda part: part.query)
        unknown = [part.unknown for part in parts if part.unknown is not None]
        return TaskBatch(support, query, unknown=torch.cat(unknown)[back] if unknown else None)

    def _renumbered(self, batch: TaskBatch, name: str) -> TaskBatch:
        """Let labels of meta-train classes count through all domains."""
        before = self.trained[: self.trained.index(name)]
        offset = sum(len(self.domains[each].classes["train"]) for each in before)
        support = Labelled(batch.support.x, batch.support.y + offset, self.spec.train_classes)
        return TaskBatch(support, support)

    def prepare(self, model: torch.nn.Module) -> None:
        for domain in self.domains.values():
            domain.prepare(model)

    def to(self, device: torch.device) -> Domains:
        self.device = device
        for domain in self.domains.values():
            domain.to(device)
        return self

    def variants(self) -> dict[str, EpisodeShape | None]:
        each: dict[str, EpisodeShape | None] = {"": self.shape}
        if len(self.tested) > 1:
            each |= {f"_{name}": replace(self.shape, domain=name) for name in self.tested}
        each |= {f"_{way}way": self.shape.changed(way=way) for way in self.test_ways if way != self.shape.way}
        return each

    @property
    def preparation(self) -> Any:
        """The preprocessing of a user's image: that of the first test domain."""
        return getattr(self.domains[self.tested[0]], "preparation", None)

    def remarks(self) -> list[str]:
        return [remark for domain in self.domains.values() for remark in domain.remarks()]

    def protocol(self) -> dict[str, Any]:
        own = self.domains[self.tested[0]].protocol()
        shape = {key: own[key] for key in ("episodes", "way", "shot", "query", "unknown") if key in own}
        return {"data": " + ".join(self.tested), "train_domains": self.trained, **shape}

    def record(self) -> DataRecord:
        classes: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
        content: dict[str, str] = {}
        places: list[str] = []
        for name, domain in self.domains.items():
            found = domain.record()
            for split in classes:
                if name in self._of(split, self.shape):
                    classes[split] += [f"{name}/{each}" for each in found.classes[split]]
            content |= {f"{name}/{each}": digest for each, digest in found.content.items()}
            places += found.places
        return DataRecord(classes, content, places)

    def class_names(self) -> Sequence[str]:
        return [f"{name}/{each}" for name, domain in self.domains.items() for each in domain.class_names()]

    def keep_classes(self, classes: Mapping[Split, Sequence[str]]) -> None:
        for name, domain in self.domains.items():
            start = f"{name}/"
            own = {
                split: [each.removeprefix(start) for each in listed if each.startswith(start)]
                for split, listed in classes.items()
            }
            domain.keep_classes({split: own.get(split) or kept for split, kept in domain.record().classes.items()})
        self._describe()

    def picture(self, learner: Any) -> Any:
        return self.domains[self.tested[0]].picture(learner)


class TextDomains(Domains):
    """Few-shot classification of texts of several domains; else as :class:`Domains`.

    Vocabulary and statistics of a text model come from the classes that it is meta-trained on.
    """

    modality: ClassVar[str] = "text"

    @property
    def train_texts(self) -> list[str]:
        """Texts of the meta-train classes."""
        return [text for name in self.trained for text in self.domains[name].train_texts]

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        data = [domain.data for domain in self.domains.values()]
        longest = max(each.x.shape[1] for each in data)
        for each in data:  # 0 is no token
            each.x = torch.nn.functional.pad(each.x, (0, longest - each.x.shape[1]))


def _floats(values: Tensor, of_all: Sequence[Labelled], key: str) -> Tensor:
    """Return images as floats in 0..1 if those of some domain are, because they were augmented."""
    mixed = key == "x" and len({each.x.dtype for each in of_all}) > 1
    return values.float() / 255 if mixed and values.dtype == torch.uint8 else values
