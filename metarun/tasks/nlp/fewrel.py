"""FewRel: how are two entities of a sentence related?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun.errors import UserError, require
from metarun.tasks.fewshot import DoesNotFit, split_classes
from metarun.tasks.files import find
from metarun.tasks.nlp.base import TextFewShot
from metarun.types import DataPath, Fraction, Positive


class FewRel(TextFewShot):
    """Relations between two entities of a sentence, on relations not seen before (Han et al. 2018, arXiv:1810.10147).

    From ``train_wiki.json`` (64 relations) and ``val_wiki.json`` (16) of the authors, in ``root``, or in
    ``text/fewrel`` of METARUN_DATA or the cache. The official test relations are hidden: meta-test are those of
    val_wiki, meta-validation a share ``val`` of train_wiki's, drawn by ``split_seed``, and results are not those of the
    official leaderboard.

    With ``markers`` the first mention of the head entity stands between [E1] and [/E1], that of the tail between [E2]
    and [/E2] (Baldini Soares et al. 2019, arXiv:1906.03158, section 3.2). Without, nothing tells which entities are
    asked about. Raises :class:`~metarun.errors.UserError` with file, relation and number of the example for what is no
    example.
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
    ) -> None:
        paths = [_open(root, name) for name in ("train_wiki.json", "val_wiki.json")]
        known, held_out = (_read(path, markers) for path in paths)
        both = sorted(known.keys() & held_out.keys())
        require(
            not both, f"FewRel: {', '.join(both)} in both train_wiki.json and val_wiki.json; they share no relation"
        )
        drawn = split_classes(range(len(known)), val=val, test=0, seed=split_seed, least=2)
        classes = {split: ids.tolist() for split, ids in drawn.items()}
        classes["test"] = list(range(len(known), len(known) + len(held_out)))
        for split, ids in classes.items():
            told = f"FewRel: '{split}' has {len(ids)} relations"
            require(len(ids) >= 2, f"{told}, and an episode needs 2; change task.val={val}, or add relations")
            if len(ids) < way:
                raise DoesNotFit(
                    f"{told}, fewer than task.way={way}; change task.way or task.val={val}",
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
    """Relation -> its sentences; relations sorted, sentences in the file's order."""
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
    """The tokens of an example, its entities marked."""
    require(isinstance(example, dict), f"{where}: not a JSON object")
    tokens = example.get("tokens")
    require(
        isinstance(tokens, list) and bool(tokens) and all(isinstance(token, str) for token in tokens),
        f"{where}: 'tokens' is no list of words, or an empty one",
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
    """First and last token of the first mention of the entity ``key``."""
    match example.get(key):
        case [str(), str(), [[int(), *_] as mention, *_]] if all(isinstance(i, int) for i in mention):
            pass
        case other:
            raise UserError(f"{where}: '{key}' is {other!r}, not [name, id, [[positions], ...]]")
    first, last = min(mention), max(mention)
    require(first >= 0 and last < count, f"{where}: '{key}' is at {mention}; there are {count} tokens, from 0 on")
    return first, last
