"""Few-shot classification of the user's own texts from a CSV, JSONL or parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from metarun.errors import UserError, nearest_path, require
from metarun.tasks.fewshot import DoesNotFit
from metarun.tasks.nlp.base import TextFewShot, by_class
from metarun.tasks.splits import split_classes
from metarun.tasks.tables import read_table
from metarun.types import SPLITS, Count, DataPath, Episodes, Fraction, Positive, Split


class Text(TextFewShot):
    """Classification of texts from the user's own file.

    The log says how many rows were read and left out.

    Args:
        seed: Seed of the episodes.
        file: A .csv or .tsv file with a header, a .jsonl file with one object a line, a .json list, or
            a .parquet file.
        text: Column of the texts.
        label: Column of the labels.
        split: Column that says train, val or test, the same for all texts of a class; ``None``: classes are split at
            random.
        way: Classes of an episode.
        shot: Support texts of a class.
        query: Query texts of a class.
        test_ways: Further ways to test.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
            (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.
        min_texts: Classes with fewer texts are left out.
        duplicates: ``drop`` keeps one of the identical texts of a class. ``keep`` keeps all, although a query text can
            then be in the support set too.
        val: Fraction of the classes for meta-validation.
        test: Fraction of the classes for meta-test.
        split_seed: Seed of the random split.
        order: ``content`` sorts the texts of a class, so that episodes do not depend on the order of rows. ``file``
            keeps the file's order, as in runs older than this key.

    Raises:
        UserError: The file or a column is missing, a line is malformed (the message gives its number), or there are too
            few classes or texts.
    """

    remedy_for_small_classes = "; task.min_texts=N leaves out classes of fewer texts"

    def __init__(
        self,
        seed: int,
        *,
        file: DataPath | None,
        text: str,
        label: str,
        split: str | None,
        way: Positive,
        shot: Positive,
        query: Positive,
        test_ways: Sequence[Positive],
        min_texts: Positive,
        duplicates: Literal["keep", "drop"],
        val: Fraction,
        test: Fraction,
        split_seed: int,
        order: Literal["content", "file"] = "file",
        unknown: Count,
        episodes: Episodes,
    ) -> None:
        require(file is not None, "task.file is not set: name a .csv, .tsv, .jsonl or .parquet file with texts")
        path = Path(str(file)).expanduser()
        require(path.is_file() or not path.exists(), f"task.file={file}: not a file")
        require(path.is_file(), f"task.file={file}: no such file{nearest_path(path)}")
        table = read_table(path)
        texts = table.texts(text, key="task.text")
        labels = table.texts(label, "a name", key="task.label")
        home: dict[str, Split] = {}
        if split:
            parts = table.texts(split, "a split", key="task.split")
            for (where, _), name, part in zip(table.rows, labels, parts, strict=True):
                _assign(where, home, name, part, split)
        self.columns = {"text": text, "label": label}
        self.reading = [f"{path.name}: {table.summary([text, label, *([split] if split else [])])}"]
        labelled = list(zip(texts, labels, strict=True))
        if duplicates == "drop":
            labelled = list(dict.fromkeys(labelled))
            self.reading.append(f"{path.name}: {len(texts) - len(labelled)} duplicates dropped")
        found = {name: sorted(each) if order == "content" else each for name, each in by_class(labelled).items()}
        examples = {name: each for name, each in found.items() if len(each) >= min_texts}
        if len(examples) < len(found):
            self.reading.append(
                f"{path.name}: {len(found) - len(examples)} of {len(found)} classes have fewer than "
                f"task.min_texts={min_texts} texts and are left out"
            )
        what = f"task.file={file}"
        if min_texts > 1:
            what += f", with task.min_texts={min_texts},"
        require(len(examples) > 0, f"{what} holds no texts to use")
        if split:
            classes = {s: [i for i, name in enumerate(examples) if home[name] == s] for s in SPLITS}
            self.partition: dict[str, Any] = {"split": "own"}
            remedy = f"change task.way or the column '{split}'"
        else:
            drawn = split_classes(range(len(examples)), val=val, test=test, seed=split_seed, least=2)
            classes = {s: ids.tolist() for s, ids in drawn.items()}
            self.partition = {"split": "random", "split_seed": split_seed}
            remedy = f"change task.way, task.val={val} or task.test={test}, or add classes"
        for s, ids in classes.items():
            size = f"{what} has {len(examples)} classes, {len(ids)} of them for '{s}'"
            require(len(ids) >= 2, f"{size}, and an episode needs 2; {remedy}")
            if len(ids) < way:
                raise DoesNotFit(
                    f"{size}, fewer than task.way={way}; {remedy}", f"'{s}' has {len(ids)} classes", len(ids), "way"
                )
        super().__init__(
            examples,
            classes,
            seed=seed,
            way=way,
            shot=shot,
            query=query,
            test_ways=test_ways,
            unknown=unknown,
            episodes=episodes,
            name=path.name,
            places=[path],
        )

    def remarks(self) -> list[str]:
        return [*self.reading, *super().remarks()]

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self.partition}


def _assign(where: str, home: dict[str, Split], label: str, value: str, column: str) -> None:
    """Assign the class ``label`` to the split ``value``."""
    for split in SPLITS:
        if value == split:
            require(
                home.setdefault(label, split) == split,
                f"{where}: class '{label}' is in '{split}' here and in '{home[label]}' above; "
                "the splits must share no class",
            )
            return
    raise UserError(f"{where}: '{column}' is '{value}'; allowed: {', '.join(SPLITS)}")
