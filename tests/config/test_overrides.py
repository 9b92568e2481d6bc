"""The grammar of words, which is one for all commands: what each reads as, and what is refused in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest

from metarun.config import grammar
from metarun.config.compose import changed, compose, named
from metarun.config.overrides import apply, read, read_single, word
from metarun.errors import UserError
from tests.words import has_no_library_word

VALUES: list[tuple[str, Any]] = [
    ("1e-3", 0.001),
    (".5", 0.5),
    ("-3", -3),
    ("1_000", 1000),
    ("1e400", math.inf),
    ("-inf", -math.inf),
    ("null", None),
    ("true", True),
    ("False", False),
    ("", ""),
    ("007", "007"),
    ("0x10", "0x10"),
    ("no", "no"),  # a truth value in YAML 1.1, which the stored configuration is written in
    ("1:30", "1:30"),  # a number in base 60 there
    ("2020-01-01", "2020-01-01"),  # a date there
    ("[1,[2,x],{a:3}]", [1, [2, "x"], {"a": 3}]),
    ("{a: 1, b: [x y]}", {"a": 1, "b": ["x y"]}),
    ('{"a": 1, "b c": "2"}', {"a": 1, "b c": "2"}),
    ("'1'", "1"),
    ('"a,b"', "a,b"),
    (r"a\,b", "a,b"),
    ("int(3.7)", 3),
    ("str(1)", "1"),
    # characters that mean nothing are text
    ("~/bilder/öl", "~/bilder/öl"),
    ("写真/#1", "写真/#1"),
    ("don't", "don't"),
    ("a=b&c;d!^<>`", "a=b&c;d!^<>`"),
    ("[ö,~/x]", ["ö", "~/x"]),
    ("{a:é}", {"a": "é"}),
    (r"ö\,é", "ö,é"),
    ("tab\there", "tab\there"),
    ("line\nbreak", "line\nbreak"),
]


@pytest.mark.parametrize(("text", "value"), VALUES, ids=[repr(text) for text, _ in VALUES])
def test_values(text: str, value: Any) -> None:
    (override,) = read_single([f"name={text}"])
    assert override.value == value
    assert type(override.value) is type(value)


def test_a_value_is_the_same_to_a_new_run_and_to_a_stored_one() -> None:
    words = [f"+key{n}={text}" for n, (text, _) in enumerate(VALUES)]
    values = {f"key{n}": value for n, (_, value) in enumerate(VALUES)}
    assert changed({}, read(words)) == values
    config = compose(words).config
    assert {key: config[key] for key in values} == values


REFUSED = [
    ("name='x", ["the ' at position 6 is not closed", "'name=\"'\"'\"'x\"'"]),
    ("name=(x", ["the ( at position 6 has a meaning of its own", "'name=\"(x\"'"]),
    ("name=x (1)", ["the ( at position 8", "'name=\"x (1)\"'"]),
    ("name=f(x)", ["calls 'f', which is not a function"]),
    ("name=chioce(x)", ["did you mean 'choice'"]),
    ("name=[1,2", ["the [ at position 6 is not closed"]),
    ("name=[1)", ["the ) at position 8 closes nothing"]),
    ("name=a[1]", ["the [ at position 7"]),
    ("name=1]", ["the ] at position 7 closes nothing"]),
    ('name="a"b', ["the b at position 9 follows a quotation"]),
    ("name=${seed", ["the ${ at position 6", "not closed"]),
    ("name=${}", ["names no key"]),
    ("name={é:1}", ["plain ASCII"]),
    ("name={a}", ["is not a value", "'name=\"{a}\"'"]),
    ("name=a,", ["is not a value"]),
    ("name=range(x)", ["range(...) has the form", "range(START,STOP,STEP)"]),
    ("name=int(x)", ["int(...) has the form int(NUMBER)"]),
    ("name=" + "[" * 30 + "]" * 30, ["20 are allowed"]),
    ("name=" + "x" * 20_000, ["20,005 characters"]),
    ("name=" + "9" * 5_000, ["is not a value"]),
    ("name=a\0b", ["NUL byte at position 7"]),
    ("name=a\udcffb", ["the byte at position 7 is not UTF-8"]),
    ("näme=x", ["'näme' is not a key"]),
    ("na me=x", ["'na me' is not a key"]),
    ("a..b=x", ["'a..b' is not a key"]),
    ("=x", ["has no key"]),
    ("~", ["has no key"]),
    ("name", ["'name' is not an override of the form key=value"]),
    ("task@x=vision/glyphs", ["leave out @x"]),
    ("name=[choice(1,2)]", ["cannot be inside another value"]),
    ("seed=1,2", ["several values", "add -m", "'seed=[1,2]'", "'seed=\"1,2\"'"]),
    ("seed=range(3)", ["several values", "add -m"]),
]


@pytest.mark.parametrize(("typed", "says"), REFUSED, ids=[repr(typed)[:40] for typed, _ in REFUSED])
def test_refused_in_one_line(typed: str, says: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        read_single([typed])
    said = str(refused.value)
    assert all(part in said for part in says), said
    assert len(said.splitlines()) == 1
    assert len(said) < 500
    assert has_no_library_word(said)


@pytest.mark.parametrize(
    "value",
    [None, True, 1, -1.5, 1e-05, math.inf, "", "null", "True", "1", "1e3", "nan", ".5", "007", "a b", "a,b", "[x]",
     "öl", "${seed}", "it's", 'say "x"', "back\\slash", "end\\", "~/x", "x=y", "(1)", " padded ", ["1", [None]],
     {"a b": "c"}],
    ids=repr,
)  # fmt: skip
def test_written_values_read_as_themselves(value: Any) -> None:
    assert read([word("name", value)])[0].value == value
    assert grammar.parse(word("name", value)).input_line == word("name", value)  # needs no change for Hydra's parser


def test_signs() -> None:
    def applied(*words: str) -> dict[str, Any]:
        config: dict[str, Any] = {"a": {"b": 1, "c": [1, 2]}, "n": None}
        apply(config, read(words))
        return config

    assert applied("a.b=2")["a"]["b"] == 2
    assert applied("a={b:2}")["a"] == {"b": 2, "c": [1, 2]}
    assert applied("a.c.1=5")["a"]["c"] == [1, 5]
    assert applied("+a.d=2")["a"]["d"] == 2
    assert applied("+x.y.z=2")["x"] == {"y": {"z": 2}}
    assert applied("+n=2")["n"] == 2
    assert applied("++a.b=2", "++a.d=3")["a"] == {"b": 2, "c": [1, 2], "d": 3}
    assert applied("~a.b")["a"] == {"c": [1, 2]}
    assert applied("~a.b=1")["a"] == {"c": [1, 2]}
    for words, says in {
        "a.d=1": "unknown key 'a.d'",
        "a={d:1}": "unknown key 'a.d'",
        "+a.b=2": "a.b exists already",
        "~a.d": "unknown key 'a.d'",
        "~a.b=2": "a.b is 1",
        "a.c.2=1": "a.c is a list of 2",
        "a.b.x=1": "a.b=1 has no keys",
        "n.x=1": "n=null has no keys",
        "aa.b=1": "there is no 'aa' - did you mean 'a'",
    }.items():
        with pytest.raises(UserError) as refused:
            applied(words)
        assert says in str(refused.value), words


def test_interpolations_are_resolved_in_overrides_only() -> None:
    stored = {"seed": 3, "name": "a${seed}", "tags": ["x"]}
    assert changed(stored, read(["+copy=${seed}", "tags=[${seed},y]"])) == {**stored, "copy": 3, "tags": [3, "y"]}
    with pytest.raises(UserError, match="name: interpolates 'nope', which is not a key"):
        changed(stored, read(["name=${nope}"]))


def test_home_in_any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    config = named(compose(["task=vision/folder", "task.root=~/bilder/öl", "runner.directory=~", "tracker.tags=[~/a]"]))
    assert config["task"]["root"] == "/home/ann/bilder/öl"
    assert config["runner"]["directory"] == "/home/ann"
    assert config["tracker"]["tags"] == ["~/a"]
