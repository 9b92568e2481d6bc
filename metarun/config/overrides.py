"""Overrides: changes of a configuration by command-line words, parsed and applied the same way for all commands."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, QuotedString, RangeSweep

from metarun.config import grammar
from metarun.config.paths import is_group, options
from metarun.errors import UserError, listed, nearest, shortened

_SWEEPS = (ChoiceSweep, RangeSweep, IntervalSweep, Glob)


@dataclass(frozen=True)
class Override:
    """One word: a key and its new value.

    Attributes:
        word: The word as typed.
        sign: ``+`` adds a key, ``++`` adds or changes it, ``~`` deletes it, and an empty sign changes it.
        key: A key such as ``task.shot``, or a group whose option is chosen: ``task``, ``hydra/launcher``.
        parsed: The parsed value, with quoted strings marked and several values as one object.
    """

    word: str
    sign: str
    key: str
    parsed: Any

    @property
    def value(self) -> Any:
        """The single value, with unresolved interpolations."""
        return _plain(self.parsed)

    @property
    def sweeps(self) -> bool:
        """True if the word has several values, one for each run of a sweep."""
        return isinstance(self.parsed, _SWEEPS)

    @property
    def text(self) -> str:
        """The word as Hydra reads it."""
        return self.sign + self.key + ("" if self.sign == "~" else "=" + grammar.written(self.parsed))

    def count(self) -> int:
        """Return the number of values, without creating them: a range may have millions."""
        match self.parsed:
            case ChoiceSweep(list=values):
                return len(values)
            case Glob():
                return len(self._matching())
            case IntervalSweep():
                raise UserError(
                    f"{shortened(self.word)}: an interval has infinitely many values; list them "
                    "(a,b,c or range(START,STOP,STEP)), or tune them with `metarun search`"
                )
            case RangeSweep(start=start, stop=stop, step=step):
                assert start is not None
                assert stop is not None
                if not step or not all(map(math.isfinite, (start, stop, step))):
                    raise UserError(f"{shortened(self.word)}: a range needs finite ends and a step other than 0")
                return max(0, math.ceil((Decimal(stop) - Decimal(start)) / Decimal(step)))
        return 1

    def expanded(self) -> list[Override]:
        """Return one override for each value. Shuffled values have a new order in every call."""
        found: list[Any]
        match self.parsed:
            case ChoiceSweep(list=values, shuffle=shuffle):
                found = list(values)
            case RangeSweep(shuffle=shuffle):
                found = list(self.parsed.range())
            case Glob():
                found, shuffle = self._matching(), False
            case _:
                return [self]
        if shuffle:
            random.shuffle(found)
        return [replace(self, parsed=value) for value in found]

    def _matching(self) -> list[str]:
        """Return the options of the group whose names match a ``glob``."""
        names = [name for name, _ in options(self.key)] if is_group(self.key) else []
        if not names:
            raise UserError(f"{shortened(self.word)}: glob chooses options of a group, such as algorithm=glob(maml*)")
        found = Glob(_plain(self.parsed.include), _plain(self.parsed.exclude)).filter(names)
        if not found:
            raise UserError(f"{shortened(self.word)}: no {self.key} matches   available: {listed(names)}")
        return found


def read(words: Iterable[str]) -> list[Override]:
    """Parse overrides; raises :class:`UserError` for a word that is not one."""
    return [_read(word) for word in words]


def read_single(words: Iterable[str]) -> list[Override]:
    """Parse overrides for one run; words with several values are refused."""
    overrides = read(words)
    for override in overrides:
        if override.sweeps:
            sign, key, value = grammar.split(override.word)
            hint = ""
            if isinstance(override.parsed, ChoiceSweep) and override.parsed.simple_form and value and len(value) < 200:
                hint = f"; for a list type '{sign}{key}=[{value}]', for a text '{sign}{key}={grammar.quoted(value)}'"
            raise UserError(f"{shortened(override.word)} has several values: add -m for a run of each{hint}")
    return overrides


def _read(word: str) -> Override:
    parsed = grammar.parse(word)
    sign, _, _ = grammar.split(word)
    key = parsed.key_or_group + (f"@{parsed.package}" if parsed.package else "")
    if parsed.package:
        raise UserError(f"{shortened(word)}: metarun's groups have fixed packages; leave out @{parsed.package}")
    inner = parsed._value.list if isinstance(parsed._value, ChoiceSweep) else [parsed._value]
    if any(_holds_sweep(value) for value in inner if not (value is parsed._value and isinstance(value, _SWEEPS))):
        raise UserError(f"{shortened(word)}: several values cannot be inside another value")
    return Override(word, sign, key, parsed._value)


def word(key: str, value: Any) -> str:
    """Return the word that sets ``key`` to ``value``."""
    return f"{key}={grammar.written(value)}"


def apply(config: dict[str, Any], overrides: Iterable[Override]) -> None:
    """Apply overrides to ``config``, a tree of dicts and lists; raises :class:`UserError` for unknown keys."""
    for override in overrides:
        *parents, leaf = override.key.split(".")
        node: Any = config
        for depth, name in enumerate(parents):
            if isinstance(node, dict) and node.get(name) is None and override.sign in ("+", "++"):
                node[name] = {}
            node = _item(node, name, config, parents[: depth + 1], override)
        _change(node, leaf, config, parents, override)


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """Return the value at a key such as ``model.hidden.0``; ``None`` if there is none."""
    node: Any = config
    for name in key.split("."):
        if isinstance(node, list):
            node = node[int(name)] if int(name) < len(node) else None
        else:
            node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _change(node: Any, leaf: str, config: dict[str, Any], parents: Sequence[str], override: Override) -> None:
    value, sign = override.value, override.sign
    if isinstance(node, list):
        _item(node, leaf, config, [*parents, leaf], override)
        position = int(leaf)
        if sign == "~":
            del node[position]
        else:
            node[position] = value
        return
    if not isinstance(node, dict):
        raise _unknown(config, [*parents, leaf], override)
    here = node.get(leaf)
    if sign == "~":
        _item(node, leaf, config, [*parents, leaf], override)
        if value is not None and value != here:
            raise UserError(f"{shortened(override.word)}: {override.key} is {grammar.written(here)}")
        del node[leaf]
        return
    if sign == "+" and here is not None and not isinstance(value, (dict, list)):
        raise UserError(f"{shortened(override.word)}: {override.key} exists already; to change it leave out the + sign")
    if sign == "":
        _item(node, leaf, config, [*parents, leaf], override)
    if isinstance(value, dict) and isinstance(here, dict):
        below = (replace(override, key=f"{override.key}.{key}", parsed=each) for key, each in value.items())
        for each in below:
            _change(here, each.key.rpartition(".")[2], config, [*parents, leaf], each)
    elif sign == "+" and isinstance(value, list) and isinstance(here, list):
        node[leaf] = here + value
    else:
        node[leaf] = value


def _item(node: Any, name: str, config: dict[str, Any], path: Sequence[str], override: Override) -> Any:
    if isinstance(node, dict) and name in node:
        return node[name]
    if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
        return node[int(name)]
    raise _unknown(config, path, override)


def _unknown(config: dict[str, Any], path: Sequence[str], override: Override) -> UserError:
    """Return the error for a missing key, with the nearest key and the existing ones."""
    *parents, leaf = path
    node: Any = config
    for name in parents:
        node = node[name] if isinstance(node, dict) else node[int(name)]
    where = ".".join(parents)
    key = shortened(override.key)
    if isinstance(node, list):
        return UserError(f"unknown key '{key}': {where} is a list of {len(node)}, counted from 0")
    if not isinstance(node, dict):
        return UserError(f"unknown key '{key}': {where}={shortened(grammar.written(node))} has no keys")
    best = nearest(leaf, node)
    if where:
        best = best.replace("'", f"'{where}.", 1)
    if path != override.key.split("."):
        return UserError(f"unknown key '{key}': there is no '{'.'.join(path)}'{best}")
    allowed = ", ".join(node) or f"none; to add one type +{key}=..."
    return UserError(f"unknown key '{key}'{best}   allowed: {allowed}")


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value


def _holds_sweep(value: Any) -> bool:
    if isinstance(value, _SWEEPS):
        return True
    return isinstance(value, (list, dict)) and any(
        map(_holds_sweep, value if isinstance(value, list) else value.values())
    )
