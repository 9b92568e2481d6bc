"""Sorting the words of a command: names, key=value overrides, and options that take a number."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from metarun.errors import UserError, nearest


def sort(
    words: Sequence[str], options: Sequence[str], hidden: Collection[str] = ()
) -> tuple[list[str], list[str], dict[str, int]]:
    """Names, overrides, and the numbers of the ``options`` given: at least 1, of ``hidden`` ones at least 0.

    An option is ``--name N`` or ``--name=N``; any other is an error that names the nearest.
    """
    names: list[str] = []
    overrides: list[str] = []
    numbers: dict[str, int] = {}
    remaining = iter(words)
    for word in remaining:
        option, separator, value = word.partition("=")
        if option in options or option in hidden:
            value = value if separator else next(remaining, "")
            if not value.isdigit() or (int(value) < 1 and option not in hidden):
                raise UserError(f"{option} needs a number of at least 1, not '{value}'")
            numbers[option] = int(value)
        elif word.startswith("-"):
            raise UserError(f"unknown option '{word}'{nearest(word, options)}   options: {', '.join(options)}")
        elif separator:
            overrides.append(word)
        else:
            names.append(word)
    return names, overrides, numbers
