"""What every few-shot text family shares: texts sorted by class, ids from the model, an episode's picture."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from metarun.tasks.fewshot import ClassData, FewShot, hash_of
from metarun.types import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner


class TextFewShot(FewShot):
    """Few-shot classification of texts.

    A model turns texts into rows of ids once (:meth:`prepare`), so that an episode is a gather; a text
    model's vocabulary and statistics come from :attr:`train_texts` alone.
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
    ) -> None:
        """``examples``: class -> its texts; ``classes[split]`` are positions in it; ``places``: the files read."""
        self.texts = [text for each in examples.values() for text in each]
        offsets = np.cumsum([0, *(len(each) for each in examples.values())])
        ids = torch.zeros(len(self.texts), 0, dtype=torch.int32)
        digests = [hash_of(json.dumps(list(each)).encode()) for each in examples.values()]
        super().__init__(
            ClassData(ids, offsets, list(examples), digests, [str(place.resolve()) for place in places]),
            classes,
            seed=seed,
            way=way,
            shot=shot,
            query=query,
            test_ways=test_ways,
            input_shape=(),
            name=name,
        )

    @property
    def train_texts(self) -> list[str]:
        """The texts of the meta-train classes."""
        starts, ends = self.data.offsets[:-1], self.data.offsets[1:]
        return [text for c in self.classes["train"] for text in self.texts[starts[c] : ends[c]]]

    def contents(self) -> list[str]:
        return self.texts

    def prepare(self, model: Any) -> None:
        """Let ``model.encode`` turn every text into a row of ids."""
        self.data.x = model.encode(self.texts).to(self.device)

    def picture(self, learner: Learner) -> Figure:
        """One test episode: the support texts of each class, and queries with the class predicted.

        At most 5 classes, 2 support and 3 query texts of each are shown, wrongly classified ones first and in
        red; the episode itself is whole.
        """
        from matplotlib.figure import Figure

        shape = self.shape
        batch, (drawn, rows) = self.batch("test", [0]), self.rows("test", [0], shape)
        learner.eval()
        with torch.no_grad():
            predicted = learner.adapt(batch.support)(batch.query.x)[0].argmax(-1).cpu()
        right = float((predicted == batch.query.y[0].cpu()).float().mean())
        guesses = predicted.view(shape.way, shape.query).tolist()
        names = [self.data.names[c] for c in drawn[0]]

        lines: list[tuple[str, str, str, bool]] = []  # label, text, predicted, whether that is wrong
        for label in range(min(shape.way, 5)):
            texts = [self.texts[row] for row in rows[0, label]]
            lines += [(names[label], text, "(support)", False) for text in texts[: min(shape.shot, 2)]]
            judged = zip(texts[shape.shot :], guesses[label], strict=True)
            for text, guess in sorted(judged, key=lambda pair: pair[1] == label)[:3]:
                lines.append((names[label], text, names[guess], guess != label))

        figure = Figure(figsize=(11, 0.27 * len(lines) + 0.9))
        ax = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        ax.set_xlim(0, 1)
        ax.set_ylim(len(lines) + 1.6, -1)
        ax.axis("off")
        title = f"One episode of unseen classes: {100 * right:.0f} % of its queries right"
        ax.set_title(title, fontsize=10, y=0.96)
        for x, head in zip(_COLUMNS, ("class", "text", "predicted"), strict=True):
            ax.text(x, 0.6, head, fontsize=9, weight="bold", va="center")
        for i, (name, text, guess, wrong) in enumerate(lines, start=1):
            y = i + 0.6
            if guess == "(support)":
                ax.axhspan(y - 0.5, y + 0.5, color="0.93", lw=0)
            if i > 1 and name != lines[i - 2][0]:
                ax.axhline(y - 0.5, color="0.7", lw=0.8)
            colour = "tab:red" if wrong else "0.4" if guess == "(support)" else "tab:green"
            cells = zip(_COLUMNS, (name, text, guess), (28, 80, 28), ("k", "k", colour), strict=True)
            for x, cell, width, c in cells:
                shown = textwrap.shorten(cell, width, placeholder=" ...")
                ax.text(x, y, shown, fontsize=8, color=c, va="center", parse_math=False)
        return figure


_COLUMNS = (0.0, 0.22, 0.78)


def by_class(labelled: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """(text, label) pairs -> label -> texts: labels sorted, texts in the order given."""
    found: dict[str, list[str]] = {}
    for text, label in labelled:
        found.setdefault(label, []).append(text)
    return dict(sorted(found.items()))
