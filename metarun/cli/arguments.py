"""Declaration of a command's words, and the one parser of them. Importing this takes no time: help needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from metarun.errors import UserError, nearest, shortened

if TYPE_CHECKING:
    from metarun.config.trust import Trust


def at_least(smallest: int) -> Callable[[str], int]:
    """Return a reader of an integer of at least ``smallest``; it raises ValueError for any other text."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < smallest:
            raise ValueError(f"an integer of at least {smallest}")
        return int(text)

    return read


def days(text: str) -> float:
    """Return a number of days; raises ValueError for any other text."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError("a number of days")
    return number


def probability(text: str) -> float:
    """Return a probability; raises ValueError for any other text."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError("a probability from 0 to 1")
    return number


class Option(NamedTuple):
    """An option of a command, ``--name`` or ``--name VALUE``.

    Attributes:
        name: Its name, with both dashes.
        help: What it does, one clause.
        value: Placeholder of its value; empty for a flag.
        default: The value without the option, as help prints it.
        short: One-dash form; empty if there is none.
        choices: The allowed values; empty for any.
        implied: The value if none follows. Such a value follows only after ``=``, or if it is one of ``choices``.
        read: Reader of the value. Its ValueError says what the value must be.
        repeats: True if every occurrence counts; the values are then a list.
        hidden: True for an option that only metarun itself passes.
    """

    name: str
    help: str
    value: str = ""
    default: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    implied: str | None = None
    read: Callable[[str], Any] = str
    repeats: bool = False
    hidden: bool = False

    def read_value(self, typed: str, text: str) -> Any:
        """Return the value of the option, which was ``typed`` in its long or short form."""
        if self.choices and text not in self.choices:
            allowed = ", ".join(self.choices)
            if not text:
                raise UserError(f"{typed} needs one of {allowed}")
            raise UserError(f"{typed} {shortened(text)}{nearest(text, self.choices)}   allowed: {allowed}")
        if not text and self.implied is None:
            try:
                self.read("")
            except ValueError as error:
                raise UserError(f"{typed} needs {error}") from None
            raise UserError(f"{typed} needs a value: {self.help}")
        try:
            return self.read(text)
        except ValueError as error:
            raise UserError(f"{typed} needs {error}, not '{shortened(text)}'") from None


class Key(NamedTuple):
    """A key that belongs to the command itself, ``name=VALUE``."""

    name: str
    help: str
    value: str
    default: str = ""
    choices: tuple[str, ...] = ()


class Command(NamedTuple):
    """A command: all that help prints about it and all that its parser knows.

    Attributes:
        name: Its name.
        summary: What it does, one clause, for the overview.
        usage: The words after its name.
        about: What it does, for its own help.
        examples: Two commands, each with what it does.
        page: Topic of the manual that describes it.
        options: Its options, besides the :data:`COMMON` ones.
        keys: Keys of its own. Empty if its keys are those of a run, or it has none.
        keys_file: File below conf/ that declares its own keys instead: a line with default and comment for each.
        module: Module below metarun.cli with its ``run``; empty if it has the command's name.
        takes_names: Whether words without ``=`` name something (a run, an option). They are overrides otherwise.
        prints: Whether its result is its output, rather than files.
    """

    name: str
    summary: str
    usage: str
    about: str
    examples: tuple[tuple[str, str], ...]
    page: str
    options: tuple[Option, ...] = ()
    keys: tuple[Key, ...] = ()
    keys_file: str = ""
    module: str = ""
    takes_names: bool = True
    prints: bool = False

    @property
    def words(self) -> str:
        """The command line, with placeholders."""
        return f"metarun {self.name} {self.usage}".rstrip()


COMMON = (
    Option("--quiet", "print results, warnings and errors only; no progress", short="-q"),
    Option("--verbose", "also print what is read and decided on the way", short="-v"),
    Option("--help", "print this help", short="-h"),
)
"""Options of every command."""


class Arguments:
    """The parsed words of a command.

    Attributes:
        command: The command.
        names: Words that name something.
        overrides: Words of the form ``key=value``.
        options: Values of the options that were given, by their long name; True for a flag.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self.names: list[str] = []
        self.overrides: list[str] = []
        self.options: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The value of an option; ``None`` if it was not given."""
        return self.options.get(name)

    def apply(self) -> None:
        """Apply the options that concern the whole process: how much is printed, and where options are looked for."""
        import logging

        from metarun.config.paths import conf_directory, use_config_dir, user_directories
        from metarun.tracking.console import set_up_logging

        set_up_logging("quiet" if self["--quiet"] else "verbose" if self["--verbose"] else "normal")
        if any(option.name == "--config-dir" for option in self.command.options):
            use_config_dir(self["--config-dir"])
        if self["--verbose"]:
            places = ", ".join(map(str, [*user_directories(), conf_directory()]))
            logging.getLogger("metarun").debug("configuration files: %s", places)

    @property
    def trust(self) -> Trust:
        """The code that ``--trust`` and ``--config-dir`` permit a stored configuration to call."""
        from metarun.config.trust import Trust

        return Trust.named(self["--trust"] or ())

    def passed_on(self) -> list[str]:
        """The options that a child process gets too."""
        words = [name for name in ("--quiet", "--verbose") if self[name]]
        words += [f"--config-dir={self['--config-dir']}"] if self["--config-dir"] else []
        return words + [f"--trust={names}" if names else "--trust" for names in self["--trust"] or ()]

    def own_keys(self) -> dict[str, str]:
        """The command's own keys and their values; raises :class:`UserError` for any other key."""
        known = {key.name: key for key in self.command.keys}
        values: dict[str, str] = {}
        for word in self.overrides:
            name, _, value = word.partition("=")
            where = self.command.name
            if name not in known:
                raise UserError(f"{where}: unknown key '{name}'{nearest(name, known)}   allowed: {', '.join(known)}")
            if not value:
                raise UserError(f"{where}: {name}= needs a value: {known[name].help}")
            choices = known[name].choices
            if choices and value not in choices:
                allowed = ", ".join(choices)
                raise UserError(f"{where}: {name}={shortened(value)}{nearest(value, choices)}   allowed: {allowed}")
            values[name] = value
        return values


_OF_HYDRA = {
    "--config-path": "metarun has one configuration, to which --config-dir DIR adds your own files",
    "-cp": "metarun has one configuration, to which --config-dir DIR adds your own files",
    "--config-name": "metarun has one configuration; experiment=NAME chooses a recipe of yours in --config-dir DIR",
    "-cn": "metarun has one configuration; experiment=NAME chooses a recipe of yours in --config-dir DIR",
    "--experimental-rerun": "`metarun resume RUN` continues a run",
    "--run": "without options, metarun starts one run",
    "-r": "without options, metarun starts one run",
    "--hydra-help": "`metarun --help` shows metarun's options",
}
"""Options of Hydra that metarun does not have, with what to use instead."""


def parse(command: Command, words: Sequence[str]) -> Arguments:
    """Parse the words of a command.

    Raises:
        UserError: An option is unknown (the message names the nearest one), or its value is wrong.
    """
    known = {name: each for each in (*command.options, *COMMON) for name in (each.name, each.short) if name}
    parsed, remaining = Arguments(command), list(words)
    while remaining:
        word = remaining.pop(0)
        typed, separator, value = word.partition("=")
        option = known.get(typed)
        if option is not None and not (separator and not option.value):
            if not option.value:
                parsed.options[option.name] = True
                continue
            if not separator and option.implied is not None:
                value = remaining.pop(0) if remaining and remaining[0] in option.choices else option.implied
            elif not separator:
                value = remaining.pop(0) if remaining else ""
            found = option.read_value(typed, value)
            parsed.options[option.name] = [*(parsed[option.name] or ()), found] if option.repeats else found
        elif word.startswith("-") and word != "-":
            if typed in _OF_HYDRA:
                raise UserError(f"metarun has no option {typed}: {_OF_HYDRA[typed]}")
            raise UserError(_unknown(command, word, typed))
        else:
            (parsed.names if is_name(command, word) else parsed.overrides).append(word)
    return parsed


def refuse_words(arguments: Arguments) -> None:
    """Raise :class:`UserError` if a command that takes options only got other words."""
    words = [*arguments.names, *arguments.overrides]
    if words:
        raise UserError(f"{arguments.command.name} takes no '{shortened(words[0])}'   usage: {arguments.command.words}")


def refuse_overrides(arguments: Arguments) -> None:
    """Raise :class:`UserError` if a command that changes no keys got ``key=value``."""
    if arguments.overrides:
        word, name = shortened(arguments.overrides[0]), arguments.command.name
        raise UserError(f"{name} changes no keys, and takes no '{word}'   usage: {arguments.command.words}")


def is_name(command: Command, word: str) -> bool:
    """Return whether a word names something, rather than sets a key. A path may contain ``=``."""
    if not command.takes_names:
        return False
    if word.startswith(("/", "./", "../", "~/")) or ("=" in word and os.path.exists(word)):
        return True
    return "=" not in word and not word.startswith("~")


def _unknown(command: Command, word: str, typed: str) -> str:
    """Return the message for an unknown option."""
    shown = [each for each in (*command.options, *COMMON) if not each.hidden]
    bare = typed.lstrip("-").replace("-", "_")
    hint = nearest(typed, [each.name for each in shown]) if len(typed) > 2 else ""
    if not hint or bare in [key.name for key in command.keys]:
        value = word.partition("=")[2] or "VALUE"
        own = [key.name for key in command.keys]
        if (bare in own) if own else ("key=value" in command.usage and typed.startswith("--")):
            hint = f"; keys have no dashes: {bare}={value}"
    line = f"metarun {command.name} --help" if command.name != "train" else "metarun --help"
    names = ", ".join(each.short if len(typed) == 2 and each.short else each.name for each in shown)
    return f"unknown option '{shortened(word)}'{hint}   options: {names}   `{line}` describes them"
