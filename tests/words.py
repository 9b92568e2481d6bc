"""Words that a message to the user must not have: names of libraries, their classes and errors; Hydra's keys may be."""

from __future__ import annotations

import re

LIBRARY_WORDS = re.compile(
    r"hydra(?![./]\w)|omegaconf|antlr|pydantic|LexerNo|ConfigLoader|DictConfig|full_key|object_type|site-packages|"
    r"state_dict|TensorList|\b[A-Z]\w*(Error|Exception|Warning)\b|Errno|Traceback|expecting \{|mismatched input|"
    r"viable alternative",
    re.IGNORECASE,
)


def library_word(said: str) -> str | None:
    """The first such word in a message."""
    found = LIBRARY_WORDS.search(said)
    return found[0] if found else None


def has_no_library_word(said: str) -> bool:
    assert library_word(said) is None, f"{library_word(said)!r} in {said}"
    return True
