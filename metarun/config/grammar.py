"""The grammar of a command-line word ``key=value``: Hydra's, extended so that all other characters are plain text.

Hydra's parser knows a part of ASCII only and stops at other characters with a message about its lexer. Here they stand
for themselves (``task.root=~/bilder/öl``). Words without a meaning are refused with the position of the error and the
quoted form to type.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from metarun.errors import UserError, nearest, shortened

LONGEST = 10_000
"""Largest number of characters of a word; the parser takes a millisecond for each element of a list."""
DEEPEST = 20
"""Largest nesting depth of brackets."""

FUNCTIONS = {
    "choice": "choice(A,B,...)",
    "range": "range(STOP), range(START,STOP) or range(START,STOP,STEP), all numbers",
    "interval": "interval(START,END), two numbers",
    "glob": "glob(PATTERN) or glob([PATTERN,...],exclude=PATTERN)",
    "shuffle": "shuffle(A,B,...), shuffle(range(...)) or shuffle(choice(...))",
    "sort": "sort(A,B,...), sort(range(...)) or sort(choice(...)), with reverse=true if wanted",
    "tag": "tag(NAME,...,choice(...))",
    "int": "int(NUMBER)",
    "float": "float(NUMBER)",
    "bool": "bool(VALUE), one of true, false or a number",
    "str": "str(VALUE)",
}
"""Functions that may stand before a parenthesis, with their form."""

_KEY = re.compile(r"[A-Za-z_]\w*(?:-\w+)*(?:(?:/[A-Za-z_][\w-]*)*|(?:\.[\w-]+)*)(?:@[\w.]+)?", re.ASCII)
_NAME = re.compile(r"\s*[A-Za-z_][\w-]*\s*", re.ASCII)
_ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")
_PLAIN = re.compile(r"(?:[\w/\\+.$%*@?|: \t-]|\\[\\()\[\]{}:=, \t]|\$\{[^{}]+\})*", re.ASCII)
"""Text that Hydra's lexer accepts unquoted."""
_QUOTED = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}"}

_parser = OverridesParser.create()


def parse(word: str) -> HydraOverride:
    """Parse a word as an override; raises :class:`UserError` if it is not one."""
    _check_text(word)
    sign, key, value = split(word)
    if not key:
        raise UserError(f"'{shortened(word)}' has no key; the form is key=value")
    if not _KEY.fullmatch(key):
        raise UserError(f"'{shortened(word)}': '{shortened(key)}' is not a key, such as seed or task.shot")
    if value is None and sign != "~":
        raise UserError(f"'{shortened(word)}' is not an override of the form key=value")
    text = sign + key + ("" if value is None else "=" + _Reader(word, len(word) - len(value)).read())
    try:
        parsed = _parser.parse_rule(text, "override")
    except (HydraException, RecursionError, ValueError) as error:  # ValueError: an integer of 5,000 digits
        if found := re.search(r"while evaluating '(\w+)\(", str(error)):
            raise UserError(
                f"{shortened(word)}: {found[1]}(...) has the form {FUNCTIONS[found[1]]}{_literal(word)}"
            ) from None
        raise UserError(f"{shortened(word)} is not a value{_literal(word)}") from None
    assert isinstance(parsed, HydraOverride)
    parsed.input_line = text
    return parsed


def split(word: str) -> tuple[str, str, str | None]:
    """Split a word into its sign (``+``, ``++``, ``~`` or empty), its key, and the text after ``=`` (``None``
    without one).
    """
    key, separator, value = word.partition("=")
    sign = next(sign for sign in ("++", "+", "~", "") if key.startswith(sign))
    return sign, key[len(sign) :], value if separator else None


def written(value: Any) -> str:
    """Return ``value`` as it is typed, so that it parses to itself."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_as_key(str(key))}:{written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, QuotedString):
        return value.with_quotes()
    if isinstance(value, str):
        return value if _is_word(value) else quoted(value)
    return str(value)


def quoted(text: str) -> str:
    """Return ``text`` in quotation marks, so that it parses to itself."""
    return QuotedString(text, Quote.double).with_quotes()


def _is_word(text: str) -> bool:
    """Return whether a text parses to itself without quotes: not a number, boolean or expression."""
    return bool(re.fullmatch(r"[A-Za-z_/.][\w/.@%*?|+-]*", text, re.ASCII)) and not (
        re.fullmatch(r"null|true|false|inf|nan|[\d.e+-]+", text, re.IGNORECASE)
    )


def _check_text(word: str) -> None:
    if len(word) > LONGEST:
        raise UserError(
            f"{shortened(word)} has {len(word):,} characters, more than {LONGEST:,}; "
            "long values belong in a file of --config-dir"
        )
    if "\0" in word:
        raise UserError(f"{shortened(word)}: a word cannot have the NUL byte at position {word.index(chr(0)) + 1}")
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{shortened(word)}: the byte at position {error.start + 1} is not UTF-8") from None


def _literal(word: str) -> str:
    """Return a hint to type the value as quoted text."""
    sign, key, value = split(word)
    if not value or len(word) > 200:
        return ""
    return f"; for the text itself type {shlex.quote(f'{sign}{key}={quoted(value)}')}"


def _name(character: str) -> str:
    return "space" if character == " " else character if character.isprintable() else f"character {character!r}"


def _as_key(text: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", text)


@dataclass
class _Reader:
    """Reads a value once from left to right and quotes what Hydra's lexer would stop at.

    Attributes:
        word: The word.
        at: Position of the next character.
        out: Parts read so far.
        text: Plain text since the last bracket, comma or quotation.
        ended: True if a quotation ended since the last bracket or comma.
        open: Positions of the open brackets.
    """

    word: str
    at: int
    out: list[str] = field(default_factory=list)
    text: str = ""
    ended: bool = False
    open: list[int] = field(default_factory=list)

    def read(self) -> str:
        while self.at < len(self.word):
            self._step(self.word[self.at])
        self._end_text()
        if self.open:
            self._refuse(self.open[-1], "is not closed")
        return "".join(self.out)

    def _step(self, character: str) -> None:
        inside = self.word[self.open[-1]] if self.open else ""
        if found := _ESCAPED.match(self.word, self.at):
            self._take(found[0])
        elif self.word.startswith("${", self.at):
            self._take(self.word[self.at : self._end_of_interpolation()])
        elif character in "\"'" and not self.text.strip() and not self.ended:
            if not (found := _QUOTED.match(self.word, self.at)):
                self._refuse(self.at, "is not closed")
            self.ended, self.text = True, ""
            self.out.append(found[0])
            self.at = found.end()
        elif character in _CLOSING:
            self._open(character)
        elif character in ")]}":
            if not inside or _CLOSING[inside] != character:
                self._refuse(self.at, "closes nothing")
            self._end_text()
            self.open.pop()
            self._structure(character)
        elif character == ",":
            self._end_text()
            self._structure(character)
        elif character == ":" and inside == "{" and self._before() in "{,":
            self._end_key()
            self._structure(character)
        elif character == "=" and inside == "(" and _NAME.fullmatch(self.text) and self._before() in "(,":
            self.out.append(self.text)
            self._structure(character)
        else:
            self._take(character)

    def _take(self, text: str) -> None:
        if self.ended and text.strip():
            self._refuse(self.at, "follows a quotation that has ended")
        self.text += text
        self.at += len(text)

    def _structure(self, character: str) -> None:
        self.out.append(character)
        self.text, self.ended = "", False
        self.at += 1

    def _before(self) -> str:
        """Return the last bracket or comma that was read."""
        return next((part for part in reversed(self.out) if part.strip() and part in "([{,:="), "")

    def _open(self, bracket: str) -> None:
        if len(self.open) == DEEPEST:
            self._refuse(self.at, f"is the {DEEPEST + 1}st inside another; {DEEPEST} are allowed")
        name = self.text.strip()
        if self.ended or (name and not (bracket == "(" and _NAME.fullmatch(self.text))) or (bracket == "(" > name):
            self._refuse(self.at, "has a meaning of its own")
        if name and name not in FUNCTIONS:
            self._refuse(self.at, f"calls '{name}', which is not a function{nearest(name, FUNCTIONS)}")
        self.out.append(self.text)
        self.open.append(self.at)
        self._structure(bracket)

    def _end_text(self) -> None:
        if _PLAIN.fullmatch(self.text):
            self.out.append(self.text)
        else:
            text = _ESCAPED.sub(r"\1", self.text.strip(" \t"))
            self.out.append(quoted(text))

    def _end_key(self) -> None:
        """End a key inside braces, which may be quoted as in JSON."""
        if self.ended:
            quoted = next(n for n in reversed(range(len(self.out))) if self.out[n].strip())
            self.text = _as_key(self.out[quoted][1:-1])
            del self.out[quoted:]
        if not _PLAIN.fullmatch(self.text):
            self._refuse(self.at, "ends a key that is more than plain ASCII")
        self.out.append(self.text)

    def _end_of_interpolation(self) -> int:
        depth = 0
        for at in range(self.at, len(self.word)):
            depth += {"{": 1, "}": -1}.get(self.word[at], 0)
            if depth == 0 and self.word[at] == "}":
                if at == self.at + 2:
                    self._refuse(self.at, "begins an interpolation that names no key")
                return at + 1
        self._refuse(self.at, "begins an interpolation that is not closed")

    def _refuse(self, at: int, why: str) -> NoReturn:
        what = _name(self.word[at]) if self.word[at : at + 2] != "${" else "${"
        raise UserError(f"{shortened(self.word)}: the {what} at position {at + 1} {why}{_literal(self.word)}")
