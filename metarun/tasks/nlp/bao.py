"""The topic classification data of Distributional Signatures: news, newsgroups and product reviews."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from metarun.errors import require
from metarun.tasks.files import find
from metarun.tasks.nlp.base import TextFewShot
from metarun.tasks.tables import decoded, json_lines
from metarun.types import SPLITS, Count, DataPath, Episodes, Positive

SPLIT: dict[str, tuple[Sequence[int], Sequence[int], Sequence[int]]] = {
    "20news": ((1, 5, 10, 11, 13, 14, 16, 18), (4, 6, 7, 12, 17), (0, 2, 3, 8, 9, 15, 19)),
    "amazon": ((2, 3, 4, 7, 11, 12, 13, 18, 19, 20), (1, 6, 9, 22, 23), (0, 5, 8, 10, 14, 15, 16, 17, 21)),
    "huffpost": (range(20), range(20, 25), range(25, 41)),
    "rcv1": (
        (1, 2, 12, 15, 18, 20, 22, 25, 27, *range(32, 35), *range(38, 62), 66),
        (5, 23, 24, 26, 28, 29, 31, 35, 36, 67),
        (0, 3, 4, *range(6, 12), 13, 14, 16, 17, 19, 21, 30, 37, *range(62, 66), 68, 69, 70),
    ),
    "reuters": (range(15), range(15, 20), range(20, 31)),
}
"""Labels of the meta-train, meta-validation and meta-test classes, as in the authors' code."""


class Bao(TextFewShot):
    """Topic classification with the files and class splits of Bao et al. (2020, arXiv:1908.06039, section 5.1).

    ``<dataset>.json`` is read as the authors publish it: one JSON object a line, with an integer ``label`` and a
    ``text`` that is a list of tokens. The authors also leave out texts without any known word.

    Args:
        seed: Seed of the episodes.
        dataset: ``20news`` (20 newsgroups), ``amazon`` (reviews of 24 kinds of products), ``huffpost`` (headlines of 41
            topics), ``rcv1`` or ``reuters`` (news of 71 and 31 topics).
        root: Folder of the file; ``None``: ``text/bao`` in METARUN_DATA or the cache.
        tokens: Number of tokens read of each text (500 in the paper).
        way: Classes of an episode.
        shot: Support texts of a class.
        query: Query texts of a class.
        test_ways: Further ways to test.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
            (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.

    Raises:
        UserError: A file or a row is missing or malformed; the message names file and line.
    """

    def __init__(
        self,
        seed: int,
        *,
        dataset: Literal["20news", "amazon", "huffpost", "rcv1", "reuters"],
        root: DataPath | None,
        tokens: Positive,
        way: Positive,
        shot: Positive,
        query: Positive,
        test_ways: Sequence[Positive],
        unknown: Count,
        episodes: Episodes,
    ) -> None:
        name = f"{dataset}.json"
        path = find(root, name, f"text/bao/{name}") if root else find(None, f"text/bao/{name}")
        require(
            path is not None,
            f"{dataset}: no {name} in text/bao of METARUN_DATA or the cache; put the authors' file there, or name its "
            "folder with task.root=...",
        )
        split = SPLIT[dataset]
        found: dict[int, list[str]] = {label: [] for labels in split for label in sorted(labels)}
        for where, label, text in _rows(Path(str(path))):
            require(
                label in found,
                f"{where}: 'label' is {label}; {dataset} has the labels 0 to {len(found) - 1}",
            )
            found[label].append(" ".join(text[:tokens]))
        missing = [str(label) for label, texts in sorted(found.items()) if not texts]
        require(not missing, f"{path}: no texts of label {', '.join(missing)}; {dataset} has {len(found)} labels")
        place = {label: i for i, label in enumerate(found)}
        super().__init__(
            {f"{dataset} label {label}": texts for label, texts in found.items()},
            {s: [place[label] for label in sorted(labels)] for s, labels in zip(SPLITS, split, strict=True)},
            seed=seed,
            way=way,
            shot=shot,
            query=query,
            test_ways=test_ways,
            unknown=unknown,
            episodes=episodes,
            name=dataset,
            places=[Path(str(path))],
        )
        self.tokens = tokens

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "split": "Bao et al. 2020", "tokens": self.tokens}


def _rows(path: Path) -> Iterator[tuple[str, int, list[str]]]:
    """Yield location, label and tokens of every row."""
    for where, row in json_lines(path, decoded(path)[0]):
        for key in ("label", "text"):
            require(key in row, f"{where}: no '{key}'; there is {', '.join(map(str, row)) or 'nothing'}")
        label, text = row["label"], row["text"]
        # The authors read labels by int(), which takes digits in quotes too.
        digits = isinstance(label, str) and label.isdigit()
        require(
            digits or (isinstance(label, int) and not isinstance(label, bool)),
            f"{where}: 'label' is {label!r}, not an integer",
        )
        require(
            isinstance(text, list) and bool(text) and all(isinstance(token, str) for token in text),
            f"{where}: 'text' is not a non-empty list of tokens",
        )
        yield where, int(label), text
