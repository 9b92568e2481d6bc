"""The base class of few-shot text families: texts sorted by class, token ids from the model, and the plot of an
episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from metarun.tasks.class_data import ClassData, content_hash
from metarun.tasks.fewshot import FewShot
from metarun.tasks.sheets import Query, Row, episode_title, text_sheet
from metarun.types import Episodes, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner


OUTSIDE = "out of scope"
"""Name of the texts that belong to no class."""


class TextFewShot(FewShot):
    """The base class of few-shot text classification.

    The model encodes all texts once into rows of ids (:meth:`prepare`), so that drawing an episode is a gather.
    Vocabulary and statistics of a text model come from :attr:`train_texts` only.
    """

    modality: ClassVar[str] = "text"

    def __init__(
        self,
        examples: Mapping[str, Sequence[str]],
        classes: Mapping[Split, Sequence[int]],
        *,
        seed: int,
        way: int,
        shot: int,
        query: int,
        test_ways: Sequence[int],
        name: str,
        places: Sequence[Path] = (),
        unknown: int = 0,
        episodes: Episodes = "balanced",
        outside: Mapping[Split, Sequence[str]] | None = None,
    ) -> None:
        """Build the family.

        Args:
            examples: Texts of each class, by class name.
            classes: Positions in ``examples`` of each split's classes.
            seed: Seed of the episodes.
            way: Classes of an episode.
            shot: Support texts of a class.
            query: Query texts of a class.
            test_ways: Further ways to test at the same shot.
            unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
            episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
                (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.
            name: Name of the data in messages and results.
            places: Files that the texts were read from.
            outside: Texts of no class, by split, from which all unknown queries are drawn. Default: unknown queries are
                of other classes of the split.
        """
        known, outside = len(examples), outside or {}
        examples = {**examples, **{f"{OUTSIDE} ({split})": texts for split, texts in outside.items()}}
        self.texts = [text for each in examples.values() for text in each]
        offsets = np.cumsum([0, *(len(each) for each in examples.values())])
        rows = {split: np.arange(*offsets[known + i :][:2]) for i, split in enumerate(outside)}
        ids = torch.zeros(len(self.texts), 0, dtype=torch.int32)
        digests = [content_hash(json.dumps(list(each)).encode()) for each in examples.values()]
        super().__init__(
            ClassData(ids, offsets, list(examples), digests, [str(place.resolve()) for place in places]),
            classes,
            seed=seed,
            way=way,
            shot=shot,
            query=query,
            test_ways=test_ways,
            unknown=unknown,
            episodes=episodes,
            outside=rows,
            input_shape=(),
            name=name,
        )

    @property
    def train_texts(self) -> list[str]:
        """Texts of the meta-train classes."""
        starts, ends = self.data.offsets[:-1], self.data.offsets[1:]
        return [text for c in self.classes["train"] for text in self.texts[starts[c] : ends[c]]]

    def contents(self) -> list[str]:
        return self.texts

    def prepare(self, model: Any) -> None:
        """Encode every text as a row of ids with ``model.encode``."""
        self.data.x = model.encode(self.texts).to(self.device)

    def picture(self, learner: Learner) -> Figure:
        """Plot one test episode: the support texts of each class, and query texts with the predicted class.

        At most 5 classes, 2 support and 3 query texts of each are shown, misclassified ones first. The title
        gives the accuracy on the whole episode.
        """
        shape = replace(self.shape, varied=False, unknown=0)
        batch, (drawn, rows) = self.batch("test", [0], shape), self.rows("test", [0], shape)
        learner.eval()
        with torch.no_grad():
            predicted = learner.adapt(batch.support)(batch.query.x)[0].argmax(-1).cpu()
        right = float((predicted == batch.query.y[0].cpu()).float().mean())
        guesses = predicted.view(shape.way, shape.query).tolist()
        names = [self.data.names[c] for c in drawn[0]]
        shown = []
        for label in range(min(shape.way, 5)):
            texts = [self.texts[row] for row in rows[0, label]]
            pairs = zip(texts[shape.shot :], guesses[label], strict=True)
            queries = [Query(text, names[guess], guess == label) for text, guess in pairs]
            wrong_first = sorted(queries, key=lambda query: bool(query.right))[:3]
            shown.append(Row(names[label], texts[: min(shape.shot, 2)], wrong_first))
        figure = text_sheet(shown)
        count, on_sheet = shape.way * shape.query, sum(len(row.queries) for row in shown)
        figure.suptitle(episode_title(right, count, "wrong ones shown first" if on_sheet < count else ""))
        return figure


def by_class(labelled: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group (text, label) pairs by label. Labels are sorted; texts keep their order."""
    found: dict[str, list[str]] = {}
    for text, label in labelled:
        found.setdefault(label, []).append(text)
    return dict(sorted(found.items()))
