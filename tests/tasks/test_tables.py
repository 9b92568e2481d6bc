"""Users' tables: what is read as it is meant, and what is refused with its line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metarun.errors import UserError
from metarun.tasks.tables import read_table

PLAIN = [["a", "1.5"], ["b, c", "-2"]]


def made(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", 'text,y\na,1.5\n"b, c",-2\n', ""),
        ("t.csv", 'text,y\r\na,1.5\r\n"b, c",-2\r\n', ""),
        ("t.csv", b'\xef\xbb\xbftext,y\na,1.5\n"b, c",-2\n', ""),
        ("t.csv", 'text,y\na,1.5\n"b, c",-2\n'.encode("utf-16"), "UTF-16"),
        ("t.csv", 'text,y\na,1.5\n"b, c",-2\n'.encode("utf-16-le"), "UTF-16-LE"),
        ("t.csv", "text;y\na;1,5\nb, c;-2\n", "separated by semicolons"),
        ("t.csv", " text , y \n a , 1.5 \n\"b, c\",-2\n,\n\n", "1 empty rows skipped"),
        ("t.csv", 'text,y,,\na,1.5,,\n"b, c",-2,,\n', ""),
        ("t.tsv", "text\ty\na\t1.5\nb, c\t-2\n", ""),
        ("t.jsonl", '{"text": "a", "y": 1.5}\n\n{"text": "b, c", "y": -2}\n', ""),
        ("t.json", '{"text": "a", "y": 1.5}\n{"text": "b, c", "y": "-2"}\n', ""),
        ("t.json", '[\n{"text": "a", "y": 1.5},\n{"text": "b, c", "y": -2}]', ""),
    ],
)  # fmt: skip
def test_the_same_rows_in_many_forms(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    table = read_table(made(tmp_path, name, content))
    assert table.columns == ["text", "y"]
    assert table.texts("text") == [row[0] for row in PLAIN]
    assert table.numbers(["y"]) == [[float(row[1])] for row in PLAIN]
    assert table.header
    assert table.summary(["text"]) == f"2 rows of text; not used: y{'; ' + said if said else ''}"


def test_a_first_line_of_numbers_is_a_row(tmp_path: Path) -> None:
    table = read_table(made(tmp_path, "t.csv", "1.5,2\n3,4\n"))
    assert not table.header
    assert table.numbers(table.columns) == [[1.5, 2.0], [3.0, 4.0]]
    assert "no header" in table.summary(table.columns)


def test_a_value_may_be_long(tmp_path: Path) -> None:
    assert len(read_table(made(tmp_path, "t.csv", f"text\n{'word ' * 100_000}\n")).texts("text")[0]) == 499_999


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "x,y\n1.0,nan\n", "line 2: 'y' is 'nan', not a finite number"),
        ("t.csv", "x,y\n1,2\n1.0,-inf\n", "line 3: 'y' is '-inf', not a finite number"),
        ("t.csv", "x,y\n1,2\n1.0,\n", "line 3: 'y' is empty"),
        ("t.csv", "x,y\n1,2\n1.0\n", "line 3: 'y' is empty"),
        ("t.csv", "x,y\n1,1e39\n", "line 2: 'y' is '1e39', too large"),
        ("t.csv", "x,y\n1,1_0\n", "line 2: 'y' is '1_0', not a number"),
        ("t.csv", 'x,y\n1,"1,5"\n', "line 2: 'y' is '1,5', not a number; write a decimal point"),
        ("t.csv", "x;y\n1;1.000,5\n", "line 2: 'y' is '1.000,5', not a number"),
        ("t.csv", "x,y,x\n1,2,3\n", "line 1: two columns are called 'x'"),
        ("t.csv", "x,y\n1,2,3\n", "line 2: more values than the 2 columns"),
        ("t.csv", "0,1\n1,2\n", "line 1: 0, 1 may be names of columns or numbers"),
        ("t.csv", 'x,y\n1,"2\n3,4\n', "line 2: a quoted value is not closed"),
        ("t.csv", "x,y\n1,caf\xe9\n".encode("latin-1"), "line 2: not UTF-8 text (byte 0xe9)"),
        ("t.csv", b"PK\x03\x04\0\0\0\x01", "not a text file"),
        ("t.jsonl", '{"x": 1, "y": NaN}\n', "line 1: 'y' is NaN, not a finite number"),
        ("t.jsonl", '{"x": 1, "y": null}\n', "line 1: 'y' is empty"),
        ("t.jsonl", '{"x": 1, "y": true}\n', "line 1: 'y' is true, not a number"),
        ("t.jsonl", '{"x": 1, "y": [2]}\n', "line 1: 'y' is [2], not a number"),
        ("t.jsonl", '{"x": 1, "y": 1' + "0" * 400 + "}\n", "not a finite number"),
        ("t.jsonl", '{"x": 1, "x": 2}\n', "line 1: a key is there twice"),
        ("t.jsonl", '{"x": 1}\n{"x": 2,}\n', "line 2: not JSON"),
        ("t.jsonl", "[" * 100_000, "not JSON"),
        ("t.json", '[{"x": 1, "y": 2}, 3]', "item 2: not a JSON object"),
        ("t.json", '{\n"x": [1]\n}', "line 1: not JSON"),
    ],
)  # fmt: skip
def test_what_is_refused_of_numbers(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_table(made(tmp_path, name, content)).numbers(["x", "y"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, [], ["a"], {"a": 1}, 1.5, float("nan"), "", "  ", "\ud800"])
def test_what_is_refused_of_texts(tmp_path: Path, value: object) -> None:
    rows = [{"label": "fine"}, {"label": value}]
    path = made(tmp_path, "t.jsonl", "\n".join(json.dumps(row) for row in rows))
    with pytest.raises(UserError, match="line 2: 'label' ") as error:
        read_table(path).texts("label", "a class")
    assert "\n" not in str(error.value)
