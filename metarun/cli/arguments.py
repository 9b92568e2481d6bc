"""Parser of the words of a command: names, key=value overrides, and options that take a number."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from metarun.errors import UserError, nearest


def parse(
    words: Sequence[str], options: Sequence[str], hidden: Collection[str] = ()
) -> tuple[list[str], list[str], dict[str, int]]:
    """Split the words of a command.

    Args:
        words: The words, without the command's name.
        options: Options of the form ``--name N`` or ``--name=N``, with N at least 1.
        hidden: Options with N at least 0 that messages do not mention.

    Returns:
        Names, overrides, and the numbers of the options given.

    Raises:
        UserError: An option is unknown (the message names the nearest one), or its number is invalid.
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
                raise UserError(f"{option} needs an integer of at least 1, not '{value}'")
            numbers[option] = int(value)
        elif word.startswith("-"):
            raise UserError(f"unknown option '{word}'{nearest(word, options)}   options: {', '.join(options)}")
        elif separator:
            overrides.append(word)
        else:
            names.append(word)
    return names, overrides, numbers
