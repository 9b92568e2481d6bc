"""Cells of tables as people write them: numbers with commas, units and thousands, dates with the day first or last."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.tasks.tables import read_table
from metarun.tasks.tabular.cells import date_formats, number_format, parse_date, read_number
from metarun.tasks.tabular.encoding import Encoding


@pytest.mark.parametrize(
    ("cells", "decimal_commas", "form", "numbers"),
    [
        (["1.5", "-2", "1e3"], False, "", [1.5, -2, 1000]),
        (["1,5", "-2", "0,25"], True, "1.000,5", [1.5, -2, 0.25]),
        (["1,500", "2,000"], True, "1.000,5", [1.5, 2]),
        (["1,500", "2,000"], False, "1,000.5", [1500, 2000]),
        (["1.250", "999,5", "1.000.000"], True, "1.000,5", [1250, 999.5, 1e6]),
        (["1 250,5", "3"], True, "1.000,5", [1250.5, 3]),
        (["7%", "12.5 %"], False, "1,000.5", [7, 12.5]),
        (["$1,200.00", "$5"], False, "1,000.5", [1200, 5]),
        (["12 €", "1,5 €"], True, "1.000,5", [12, 1.5]),
        (["1.250", "2.500"], True, "", [1.25, 2.5]),
        (["A1", "A2"], False, "", [None, None]),
        (["1,2,3", "4,5,6"], False, "", [None, None]),
        (["7%", "none of it", "red", "blue"], False, "", [None, None, None, None]),
    ],
)
def test_numbers(cells: list[str], decimal_commas: bool, form: str, numbers: list[float | None]) -> None:
    assert number_format(cells, decimal_commas) == form
    assert [read_number(cell, form) for cell in cells] == numbers


def test_dates() -> None:
    """Days since 2000, the first of January 2000 being day 0; times of other zones are those of Greenwich."""
    assert parse_date("2000-01-02", "ISO") == 1
    assert parse_date("2000-01-01 12:00", "ISO") == parse_date("2000-01-01T12:00:00Z", "ISO") == 0.5
    assert parse_date("2000-01-01T02:00:00+02:00", "ISO") == 0
    assert date_formats(["2025-03-01", "2025-03-02 12:30"]) == ["ISO"]
    assert date_formats(["13/03/2025", "01/02/2025"]) == ["%d/%m/%Y"]
    assert date_formats(["03/13/2025 10:15"]) == ["%m/%d/%Y %H:%M"]
    assert date_formats(["01/02/2025"]) == ["%m/%d/%Y", "%d/%m/%Y"]
    assert date_formats(["01.02.2025", "yesterday"]) == []


def test_a_table_from_a_spreadsheet_in_german(tmp_path: Path) -> None:
    """Semicolons between columns, commas in numbers: none of the columns is read as categories or left out as text."""
    rows = [f"{i},{i % 10}5;{1 + i}.000,5;{i % 7} %;{1 + i % 28:02d}.03.2025 10:00;a" for i in range(40)]
    file = tmp_path / "table.csv"
    file.write_text("\n".join(["width;price;share;seen;kind", *rows, "x;1;1 %;01.03.2025 10:00;a"]).replace("x;", "7;"))
    table = read_table(file)
    encoding, notes = Encoding.of(table, "kind")
    assert [(column.name, column.type) for column in encoding.columns] == [
        ("width", "numbers"), ("price", "numbers"), ("share", "numbers"), ("seen", "dates"),
    ]  # fmt: skip
    assert "width: numbers written as 1.000,5, such as '0,05'" in notes
    found, _ = encoding.rows(table)
    assert found[11][:3] == [11.15, 12000.5, 4]


def test_unclear_days_and_months_are_told(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("seen,kind\n" + "\n".join(f"0{1 + i % 9}/0{1 + i % 7}/2025,{'ab'[i % 2]}" for i in range(20)))
    assert "seen: days and months are unclear, read as month/day/year" in Encoding.of(read_table(file), "kind")[1]


def test_a_cell_that_is_no_number_among_written_ones_is_named(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("x;kind\n" + "\n".join(f"{i},5;{'ab'[i % 2]}" for i in range(40)) + "\nseven;a\n")
    with pytest.raises(Exception, match=r"line 42: 'x' is 'seven' and other rows have numbers \(40 of 41\)"):
        Encoding.of(read_table(file), "kind")
