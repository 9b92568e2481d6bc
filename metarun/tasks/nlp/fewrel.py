"""FewRel: few-shot classification of the relation between two entities of a sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun.errors import UserError, require
from metarun.tasks.fewshot import DoesNotFit
from metarun.tasks.files import find
from metarun.tasks.nlp.base import TextFewShot
from metarun.tasks.splits import split_classes
from metarun.types import Count, DataPath, Episodes, Fraction, Positive


class FewRel(TextFewShot):
    """Classification of the relation between two entities of a sentence (Han et al. 2018, arXiv:1810.10147).

    The data are the authors' ``train_wiki.json`` (64 relations) and ``val_wiki.json`` (16). The official test relations
    are hidden. Meta-test uses the relations of val_wiki, so results do not compare with the official leaderboard.

    Args:
        seed: Seed of the episodes.
        root: Folder of the files; ``None``: ``text/fewrel`` in METARUN_DATA or the cache.
        markers: If true, the first mention of the head entity is enclosed in [E1] and [/E1] and that of the tail in
            [E2] and [/E2] (Baldini Soares et al. 2019, arXiv:1906.03158, section 3.2). If false, the input does not
            show which entities are meant.
        way: Classes of an episode.
        shot: Support sentences of a class.
        query: Query sentences of a class.
        test_ways: Further ways to test.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
            (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.
        val: Fraction of train_wiki's relations for meta-validation.
        split_seed: Seed of that split.

    Raises:
        UserError: A file is missing or an example malformed; the message names file, relation and example.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: DataPath | None,
        markers: bool,
        way: Positive,
        shot: Positive,
        query: Positive,
        test_ways: Sequence[Positive],
        val: Fraction,
        split_seed: int,
        unknown: Count,
        episodes: Episodes,
    ) -> None:
        paths = [_open(root, name) for name in ("train_wiki.json", "val_wiki.json")]
        known, held_out = (_read(path, markers) for path in paths)
        both = sorted(known.keys() & held_out.keys())
        require(
            not both, f"FewRel: {', '.join(both)} in both train_wiki.json and val_wiki.json; the two must share none"
        )
        drawn = split_classes(range(len(known)), val=val, test=0, seed=split_seed, least=2)
        classes = {split: ids.tolist() for split, ids in drawn.items()}
        classes["test"] = list(range(len(known), len(known) + len(held_out)))
        for split, ids in classes.items():
            size = f"FewRel: '{split}' has {len(ids)} relations"
            require(len(ids) >= 2, f"{size}, and an episode needs 2; change task.val={val}, or add relations")
            if len(ids) < way:
                raise DoesNotFit(
                    f"{size}, fewer than task.way={way}; change task.way or task.val={val}",
                    f"'{split}' has {len(ids)} classes",
                    len(ids),
                    "way",
                )
        super().__init__(
            known | held_out,
            classes,
            seed=seed,
            way=way,
            shot=shot,
            query=query,
            test_ways=test_ways,
            unknown=unknown,
            episodes=episodes,
            name="FewRel",
            places=paths,
        )
        self.partition = {"split": "test: val_wiki", "split_seed": split_seed, "markers": markers}

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self.partition}


def _open(root: str | None, name: str) -> Path:
    found = find(root, name, f"text/fewrel/{name}") if root else find(None, f"text/fewrel/{name}")
    if found is None:
        raise UserError(
            f"FewRel: no {name} in text/fewrel of METARUN_DATA or the cache; put the authors' file there, or name its "
            "folder with task.root=..."
        )
    return found


def _read(path: Path, markers: bool) -> dict[str, list[str]]:
    """Return the sentences of each relation. Relations are sorted; sentences keep the file's order."""
    try:
        relations = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    require(
        isinstance(relations, dict) and bool(relations) and all(isinstance(each, list) for each in relations.values()),
        f"{path}: not an object of relations, each a list of examples",
    )
    return {
        relation: [_sentence(f"{path}, {relation}, example {i}", e, markers) for i, e in enumerate(examples, start=1)]
        for relation, examples in sorted(relations.items())
    }


def _sentence(where: str, example: Any, markers: bool) -> str:
    """Return the tokens of an example as one string, with its entities marked if ``markers``."""
    require(isinstance(example, dict), f"{where}: not a JSON object")
    tokens = example.get("tokens")
    require(
        isinstance(tokens, list) and bool(tokens) and all(isinstance(token, str) for token in tokens),
        f"{where}: 'tokens' is not a non-empty list of words",
    )
    spans = {mark: _span(where, example, key, len(tokens)) for key, mark in (("h", "E1"), ("t", "E2"))}
    if not markers:
        return " ".join(tokens)
    marked: list[str] = []
    for i, token in enumerate(tokens):
        marked += [f"[{mark}]" for mark, (first, _) in spans.items() if first == i]
        marked.append(token)
        marked += [f"[/{mark}]" for mark, (_, last) in reversed(spans.items()) if last == i]
    return " ".join(marked)


def _span(where: str, example: dict[str, Any], key: str, count: int) -> tuple[int, int]:
    """Return the first and last token of the first mention of the entity ``key``."""
    match example.get(key):
        case [str(), str(), [[int(), *_] as mention, *_]] if all(isinstance(i, int) for i in mention):
            pass
        case other:
            raise UserError(f"{where}: '{key}' is {other!r}, not [name, id, [[positions], ...]]")
    first, last = min(mention), max(mention)
    require(first >= 0 and last < count, f"{where}: '{key}' is at {mention}; there are {count} tokens, from 0 on")
    return first, last
