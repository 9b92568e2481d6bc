"""Parquet files as support sets, queries and tables: columns, named classes, images, and files that cannot be read."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarun.adapted import sources
from metarun.adapted.learner import AdaptedLearner
from metarun.cli import main
from metarun.errors import UserError
from metarun.tasks import parquet
from metarun.tasks.episode import Spec
from metarun.tasks.inputs import Inputs
from metarun.tasks.tables import read_table
from metarun.tasks.tabular.real import CsvTables
from metarun.tasks.vision.images import Preparation
from metarun.tasks.vision.stored_images import images
from tests.cli.test_adapt_tables import Nearest, flowers, write
from tests.export import learners

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'metarun[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")
TABLES = Inputs(Spec("classification", "table", (3,), 4))
TEXTS = Inputs(Spec("classification", "text", (), 3))
IMAGES = Inputs(Spec("classification", "image", (3, 16, 16), 3), Preparation(3, 16, 16))


def stored(path: Path, columns: Any, classes: dict[str, list[str]] | None = None) -> Path:
    """A file with named classes in its metadata as the Hugging Face hub has them."""
    features = {name: {"names": names, "_type": "ClassLabel"} for name, names in (classes or {}).items()}
    facts = {"huggingface": json.dumps({"info": {"features": features}})} if classes else None
    pq.write_table(pa.table(columns).replace_schema_metadata(facts), path)
    return path


def encoded(pixels: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def drawings(path: Path, labels: list[int], struct: bool = True, broken: int | None = None) -> Path:
    """Plain images of three brightnesses."""
    content = [encoded(np.full((20, 20, 3), 20 + 90 * label, np.uint8)) for label in labels]
    if broken is not None:
        content[broken] = b"no image"
    column = [{"bytes": each, "path": f"{i}.png"} for i, each in enumerate(content)] if struct else content
    return stored(path, {"image": column, "label": labels}, {"label": ["dark", "grey", "light"]})


def test_a_table_is_read_as_its_csv_is(tmp_path: Path) -> None:
    rows = flowers(30, 0)
    rows[4]["length"] = None
    file = pa.Table.from_pylist(rows)
    pq.write_table(file, tmp_path / "known.parquet")
    text, binary = (
        sources.support(TABLES, path, "kind")
        for path in (write(tmp_path / "known.csv", rows), tmp_path / "known.parquet")
    )
    assert np.array_equal(text.items, binary.items, equal_nan=True)
    assert (text.targets, text.encoding) == (binary.targets, binary.encoding)
    section = learners.options(algorithm={"option": "prior_fitted", "decay_over": None})["algorithm"]
    algorithm = learners.construct(section, model=Nearest(), spec=TABLES.spec)
    learner = AdaptedLearner.adapt(algorithm, TABLES, binary.items, binary.targets)
    learner.columns = binary.read_columns()
    learner.save(tmp_path, {"model": {}, "algorithm": section})
    asked = sources.query(TABLES, tmp_path / "known.parquet", learner.classes, binary)
    assert asked.targets == binary.targets


def test_types_of_columns(tmp_path: Path) -> None:
    moment = datetime(2025, 3, 1, 12, 30, 15, 999, tzinfo=UTC)
    path = stored(tmp_path / "a.parquet", {
        "whole": pa.array([1, None, 3], pa.int8()), "part": pa.array([0.5, float("nan"), 1e300]),
        "half": pa.array(np.array([1.5, 2.5, 3.5], np.float16)), "price": [Decimal("1.25"), None, Decimal("2.50")],
        "yes": [True, False, None], "word": pa.array(["a", "b", "a"]).dictionary_encode(),
        "day": [date(2025, 3, 1)] * 3, "moment": pa.array([moment] * 3, pa.timestamp("ns", "Europe/Berlin")),
        "vector": [[1.0], [2.0], [3.0]], "content": [b"1", b"2", b"3"], "__index_level_0__": [7, 3, 5],
        "kind": [0, 2, -1],
    }, {"kind": ["x", "y", "z"]})  # fmt: skip
    table = read_table(path)
    assert [list(row.values()) for _, row in table.rows] == [
        [1, 0.5, 1.5, 1.25, True, "a", "2025-03-01", "2025-03-01 12:30:15", "x"],
        [None, None, 2.5, None, False, "b", "2025-03-01", "2025-03-01 12:30:15", "z"],
        [3, 1e300, 3.5, 2.5, None, "a", "2025-03-01", "2025-03-01 12:30:15", None],
    ]
    assert table.rows[2][0] == f"{path}, row 3"
    assert [note[:17] for note in table.notes] == ["not read: vector ", "not read: content"]


def test_texts_with_named_classes(tmp_path: Path) -> None:
    columns = {"text": ["good", "bad", "fine"], "label": [1, 0, 1], "topic": ["a", "b", "a"]}
    path = stored(tmp_path / "a.parquet", columns, {"label": ["no", "yes"]})
    given = sources.support(TEXTS, path)
    assert (given.items, given.targets) == (["good", "bad", "fine"], ["yes", "no", "yes"])
    assert sources.query(TEXTS, path, ["no", "yes"], given).targets == ["yes", "no", "yes"]
    chosen = sources.support(TEXTS, path, "topic")
    assert chosen.targets == ["a", "b", "a"]
    assert sources.query(TEXTS, path, ["a", "b"], chosen).targets == ["a", "b", "a"]


@pytest.mark.parametrize("struct", [True, False])
def test_images_are_predicted_from_parquet_files(
    struct: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = learners.images(tmp_path)
    known = sources.support(IMAGES, drawings(tmp_path / "known.parquet", [0, 2, 1, 0], struct))
    assert known.targets == ["dark", "light", "grey", "dark"]
    adapted = AdaptedLearner.adapt(learner.algorithm, IMAGES, known.items, known.targets)
    path = drawings(tmp_path / "new.parquet", [1, 0, 2], struct)
    asked = sources.query(IMAGES, path, adapted.classes, known)
    assert adapted.predict(asked.items).labels == asked.targets == ["grey", "dark", "light"]
    assert asked.names() == [f"{path}, row {i}" for i in (1, 2, 3)]
    assert not sources.query(IMAGES, path, adapted.classes, known, "unlabelled").targets

    # Files of any size are read while they are predicted; an image that is damaged has an empty row.
    path = drawings(tmp_path / "new.parquet", [0, 1] * 200, struct, broken=300)
    assert main(["predict", str(tmp_path), "--query", str(path), "--out", str(tmp_path / "found.csv")]) == 1
    assert "new.parquet, row 301: not a readable image (of no known format)" in capsys.readouterr().err
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows[:2]] == ["dark", "grey"]
    assert [row["file"] for row in rows if not row["predicted"]] == [f"{path}, row 301"]
    assert len(rows) == 400


def test_a_folder_of_parquet_tables(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist(flowers(30, 0)), tmp_path / f"{name}.parquet")
    task = CsvTables(0, root=tmp_path, target="kind", way=4, columns=3, shot=9, query=9, splits=2, train=0, val=0)
    assert [table.name for table in task.tables["test"]] == ["a", "b"]


def test_what_cannot_be_read_gets_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drawings(tmp_path / "a.parquet", [0, 1])
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(path.read_bytes()[:-40])
    mild = tmp_path / "mild.parquet"
    content = bytearray(stored(mild, {"image": [b"x" * 9000], "label": ["a"]}).read_bytes())
    content[200:260] = b"\xff" * 60
    mild.write_bytes(content)
    words = stored(tmp_path / "words.parquet", {"text": ["a", "b"], "tag": ["x", "y"]})
    for read, said in (
        (lambda: read_table(damaged), r"damaged.parquet: not a readable parquet file \("),
        (lambda: list(images(mild)), r"mild.parquet: not a readable parquet file \("),
        (lambda: list(images(words)), r"no column of images, which are bytes or \{bytes, path\}   columns: text, tag"),
        (lambda: sources.support(IMAGES, words), r"no column 'label'; --target COLUMN names"),
        (lambda: sources.support(IMAGES, path, "labl"), r"has no such column - did you mean 'label'\?"),
        (lambda: read_table(stored(tmp_path / "b.parquet", {"label": [3]}, {"label": ["x"]})),
         r"column 'label': the label 3 is none of its 1 named classes"),
        (lambda: sources.support(IMAGES, stored(tmp_path / "c.parquet", {"image": [b"x"] * 2, "label": ["a", None]})),
         r"c.parquet, row 2: 'label' has no class"),
        (lambda: list(images(stored(tmp_path / "d.parquet", {"left": [b"x"], "right": [b"x"]}))),
         r"the images may be in any of left, right; call one of them 'image'"),
        (lambda: read_table(stored(tmp_path / "e.parquet", {"a": [[1]]})), r"no column of numbers, words or dates"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            read()
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"--target x: names the label column.*a folder names its classes itself"):
        sources.support(IMAGES, tmp_path, "x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"a.parquet: a parquet file needs pyarrow: pip install 'metarun\[parquet\]'"):
        read_table(path)


def test_small_files_that_decode_to_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_CELLS", 1000)
    path = stored(tmp_path / "a.parquet", {"a": [1] * 501, "b": [2] * 501})
    with pytest.raises(UserError, match="has 501 rows of 2 columns; at most 1,000 cells are read"):
        read_table(path)
    path = stored(tmp_path / "b.parquet", {"image": [b"x" * 10_000] * 2000})
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match="decodes to more than 10,000,000 bytes"):
        list(images(path, 10_000_000))
