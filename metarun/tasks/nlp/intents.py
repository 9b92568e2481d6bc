"""Few-shot intent classification: the goals of users of dialogue systems."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from metarun.errors import UserError, require
from metarun.tasks.fewshot import DoesNotFit
from metarun.tasks.files import download, find
from metarun.tasks.nlp.base import TextFewShot, by_class
from metarun.tasks.nlp.folds import FOLDS
from metarun.tasks.splits import split_classes
from metarun.tasks.tables import decoded, json_lines, text
from metarun.types import SPLITS, Count, DataPath, Episodes, Fraction, Positive, Split

_CLINC = "https://raw.githubusercontent.com/clinc/oos-eval/master/data/"
_BANKING = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data/"
_FOLDS = "https://raw.githubusercontent.com/tdopierre/ProtAugment/6352ababa740133708daed815666b5bf39850d98/data/"

FILES = {
    "text/clinc150/data_full.json": (
        _CLINC + "data_full.json",
        "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    ),
    "text/clinc150/domains.json": (
        _CLINC + "domains.json",
        "b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",
    ),
    "text/banking77/train.csv": (
        _BANKING + "train.csv",
        "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    ),
    "text/banking77/test.csv": (
        _BANKING + "test.csv",
        "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
    ),
    "text/few_shot_intents/BANKING77/full.jsonl": (
        _FOLDS + "BANKING77/full.jsonl",
        "2aef59a59888b66ebfd99a08e82a18f396a81c0430410938ef416a4bd5081b98",
    ),
    "text/few_shot_intents/HWU64/full.jsonl": (
        _FOLDS + "HWU64/full.jsonl",
        "a4c337fc8d12a5b62715d80e6df3b51bea20d137da0a833e8eb584e90c429d13",
    ),
    "text/few_shot_intents/Liu/full.jsonl": (
        _FOLDS + "Liu/full.jsonl",
        "d4860503f63e87874c6b385e5e70bcc38d4d247f03a86d99047de7a182923b38",
    ),
    "text/few_shot_intents/OOS/full.jsonl": (
        _FOLDS + "OOS/full.jsonl",
        "ae5573aa7fada6614862657b0d6aabcd9f33135f56c8cd8dd4aefab6bc8ccd26",
    ),
}
"""Path below a data root -> URL and SHA-256."""


class Intents(TextFewShot):
    """Few-shot classification of intents, on classes that are not in meta-training.

    The data are read from ``root``, METARUN_DATA or the cache, and downloaded otherwise.

    Args:
        seed: Seed of the episodes.
        dataset: ``clinc150``: CLINC150 (Larson et al. 2019), 150 intents of 150 sentences; its out-of-scope sentences
            are of no class (``out_of_scope``). ``banking77``: BANKING77 (Casanueva et al. 2020), 77 intents, training
            and test part together. ``BANKING77``, ``HWU64``, ``Liu``, ``OOS``: the class folds of ProtAugment
            (Dopierre, Gravier & Logerais 2021), on which later work reports; OOS is CLINC150 again, without the
            out-of-scope sentences.
        root: A data root, or the folder of the files.
        way: Classes of an episode.
        shot: Support sentences of a class.
        query: Query sentences of a class.
        test_ways: Further ways to test.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
            (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.
        fold: Number of the fold, 1 to 5; for the four data sets with published folds.
        val: Fraction of the classes for meta-validation (clinc150 and banking77).
        test: Fraction of the classes for meta-test (clinc150 and banking77).
        by_domain: If true, whole domains go to one split (clinc150).
        out_of_scope: If true, unknown queries are the out-of-scope sentences of the split's published part instead of
            sentences of other intents: ``unknown`` times ``query`` of them (clinc150).
        seen_classes: If true, all splits have all intents, each with the sentences of its published part (clinc150).
            This protocol is for encoders that are not trained on the data.
        split_seed: Seed of the split.

    Raises:
        UserError: The root is missing, a file damaged, or the fold unknown.
    """

    def __init__(
        self,
        seed: int,
        *,
        dataset: Literal["clinc150", "banking77", "BANKING77", "HWU64", "Liu", "OOS"],
        root: DataPath | None,
        way: Positive,
        shot: Positive,
        query: Positive,
        test_ways: Sequence[Positive],
        fold: Positive,
        val: Fraction,
        test: Fraction,
        by_domain: bool,
        seen_classes: bool,
        split_seed: int,
        unknown: Count,
        episodes: Episodes,
        out_of_scope: bool,
    ) -> None:
        self.partition: dict[str, Any]
        require(
            dataset == "clinc150" or not seen_classes,
            f"task.seen_classes=true: {dataset} has no published parts; use clinc150",
        )
        require(
            dataset == "clinc150" or not out_of_scope,
            f"task.out_of_scope=true: {dataset} has no out-of-scope sentences; use clinc150",
        )
        require(
            unknown > 0 or not out_of_scope,
            "task.out_of_scope=true has no effect with task.unknown=0; task.unknown=K: K * task.query sentences",
        )
        if dataset in FOLDS:
            require(fold <= 5, f"task.fold={fold}: {dataset} has folds 1 to 5")
            examples = by_class(_jsonl(_open(root, f"few_shot_intents/{dataset}/full.jsonl")))
            digits = FOLDS[dataset][fold - 1]
            require(
                len(digits) == len(examples),
                f"{dataset}/full.jsonl has {len(examples)} classes, not {len(digits)}: not the published file",
            )
            classes = {s: [c for c, d in enumerate(digits) if d == str(i)] for i, s in enumerate(SPLITS)}
            self.partition = {"split": f"fold {fold}"}
        elif seen_classes:
            require(not by_domain, "task.seen_classes=true and task.by_domain=true exclude each other")
            parts = _clinc150(root, "")
            examples = by_class((text, f"{label} ({part})") for part, text, label in parts)
            classes = {s: [i for i, name in enumerate(examples) if name.endswith(f"({s})")] for s in SPLITS}
            self.partition = {"split": "published parts of every class"}
        else:
            labelled = (
                [(text, label) for _, text, label in _clinc150(root, "")] if dataset == "clinc150" else _banking77(root)
            )
            examples = by_class(labelled)
            groups = list(range(len(examples)))
            if by_domain:
                require(dataset == "clinc150", f"task.by_domain=true: {dataset} has no domains; use clinc150")
                groups = _domains(root, list(examples))
            drawn = split_classes(groups, val=val, test=test, seed=split_seed)
            classes = {split: ids.tolist() for split, ids in drawn.items()}
            for split, ids in classes.items():
                if len(ids) < way:
                    raise DoesNotFit(
                        f"{dataset}: '{split}' gets {len(ids)} of {len(examples)} classes, fewer than "
                        f"task.way={way}; change task.way, task.val={val} or task.test={test}",
                        f"'{split}' has {len(ids)} classes",
                        len(ids),
                        "way",
                    )
            self.partition = {"split": "by domain" if by_domain else "random", "split_seed": split_seed}
        read = [place for place in FILES if place.split("/")[-2] == dataset]
        read = [place for place in read if by_domain or not place.endswith("domains.json")]
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
            outside=_out_of_scope(root) if out_of_scope else None,
            name=dataset,
            places=[_open(root, place.removeprefix("text/")) for place in read],
        )

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self.partition}


def _open(root: str | None, name: str) -> Path:
    """Return the file ``text/<name>`` of a data root, or ``<name>`` or its base name below an explicit ``root``."""
    place = f"text/{name}"
    short = name.split("/", 1)[1]
    found = find(root, place, name, short, short.split("/")[-1]) if root else find(None, place)
    if found is not None:
        return found
    url, sha256 = FILES[place]
    return download(url, f"sha256:{sha256}", place)


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path}: not the expected file ({why}); remove it or name another task.root")


def _jsonl(path: Path) -> Iterator[tuple[str, str]]:
    for where, row in json_lines(path, decoded(path)[0]):
        for column in ("sentence", "label"):
            text(where, row, column)  # or refused
        yield row["sentence"], str(row["label"])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None


def _clinc150(root: str | None, prefix: Literal["", "oos_"]) -> list[tuple[str, str, str]]:
    """Return (part, text, intent) of every sentence in scope, or of the others (``oos_``)."""
    path = _open(root, "clinc150/data_full.json")
    parts = _json(path)
    try:
        rows: list[tuple[str, str, str]] = [
            (part, sentence, label) for part in SPLITS for sentence, label in parts[prefix + part]
        ]
        require(all(isinstance(value, str) for row in rows for value in row), f"{path}: a sentence is no text")
        return rows
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from None


def _out_of_scope(root: str | None) -> dict[Split, list[str]]:
    """Return the out-of-scope sentences of each split."""
    rows = _clinc150(root, "oos_")
    return {split: [sentence for part, sentence, _ in rows if part == split] for split in SPLITS}


def _domains(root: str | None, names: list[str]) -> list[int]:
    """Return the number of each intent's domain."""
    path = _open(root, "clinc150/domains.json")
    try:
        groups = enumerate(_json(path).values())
        domain = {intent.replace(" ", "_"): i for i, intents in groups for intent in intents}
        return [domain[name.replace(" ", "_")] for name in names]
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from None


def _banking77(root: str | None) -> list[tuple[str, str]]:
    labelled = []
    for part in ("train", "test"):
        path = _open(root, f"banking77/{part}.csv")
        try:
            rows = list(csv.DictReader(io.StringIO(decoded(path)[0], newline="")))
        except csv.Error as error:
            raise _damaged(path, error) from None
        for number, row in enumerate(rows, start=1):
            for column in ("text", "category"):
                text(f"{path}, row {number}", row, column)  # or refused
            labelled.append((row["text"], row["category"]))
    return labelled
