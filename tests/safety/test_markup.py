"""Names, labels, texts and messages reach terminal, log, CSV, Markdown, HTML and pictures as text, never as markup."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from metarun.cli import main
from metarun.cli.output import print_summary
from metarun.escape import for_csv, for_html, for_markdown, for_plot, printable
from metarun.tracking.console import Display
from metarun.tracking.files import LogFile
from tests.safety.conftest import QUICK

ESCAPES = {
    "a colour": "\x1b[31mred",
    "a title": "\x1b]0;title\x07",
    "the clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "cursor up": "\x1b[1A\x1b[2K",
    "eight-bit control": "\x9b31m",
    "carriage return": "done\rFAILED",
    "backspace": "abc\b\b\bxyz",
    "a bell": "\x07",
    "nothing": "a\x00b",
    "turned round": "abc\u202etxt.exe",
    "isolated": "\u2066x\u2069",
    "hidden": "a\u200bb\ufeff",
    "half a character": "\ud800",
    "a line separator": "a\u2028b",
}
FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0", " =1+1", "\n=1+1",
            '=HYPERLINK("x")', "-2+3+cmd|' /C calc'!A0", "＝1+1", "@x")  # fmt: skip
NUMBERS = ("-1", "+1", "-1.5e-3", "-inf", "nan", "1", "-0.1 -0.2 0.3")
MARKDOWN = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](http://h/p.png)",
            "a | b", "`code`", "**bold**", "_x_", "</td></table>", "a\n# b", "&lt;", "\\", "<!-- x")  # fmt: skip
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff\ud800]")


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES.keys())
def test_control_characters_are_shown(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not CONTROL.search(printable(text))
    assert main(["resume", f"nowhere{text}".replace("\x00", "")]) == 2
    stream = io.StringIO()
    with Display(1, 0, "mse", False, stream) as display:
        display.note(text)
    handler = LogFile(tmp_path / "metarun.log")
    handler.emit(logging.LogRecord("metarun", logging.INFO, "", 0, text, None, None))
    handler.close()
    said = capsys.readouterr()
    assert not CONTROL.search(said.out + said.err + stream.getvalue() + (tmp_path / "metarun.log").read_text())


def test_ordinary_text_is_left_alone() -> None:
    for text in ("naïve café", "日本語", "👩\u200d💻", "a\tb\nc", "−1 ± 0.5 ★", "no\u00a0break"):
        assert printable(text) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_text(text: str) -> None:
    assert for_csv(text).startswith("'")


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_stay_numbers(text: str) -> None:
    assert for_csv(text) == text
    assert for_csv(float(text.split()[0])) == pytest.approx(float(text.split()[0]), nan_ok=True)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


@pytest.mark.parametrize("text", MARKDOWN)
def test_markup_is_text(text: str) -> None:
    shown = for_markdown(text)
    for page in (shown, for_html(text)):
        tags = Tags()
        tags.feed(page)
        assert tags.found == []
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[\[\]|`*]", shown.replace(r"\\", ""))


def test_dollar_signs_in_pictures() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title(for_plot(r"$\frac{"))
    figure.savefig(io.BytesIO(), format="png")


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "name='exp[v2]:smile:'", "runner.directory='out[/v2]'"]) == 0
    assert "out[/v2]/exp[v2]:smile:/" in capsys.readouterr().out
    (run,) = Path("out[/v2]").glob("*/*")
    assert main(["eval", str(run)]) == 0
    assert "out[/v2]/exp[v2]:smile:/" in capsys.readouterr().out


def test_a_summary_of_a_stranger_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "[red]x[/red]\x1b[31m"
    estimate = {"mean": 1.0, "ci95": 0.1, "n": 2}
    print_summary({
        "test": {odd: estimate}, "references": {odd: 1.0}, "robust": {odd: {"iqm": 1, "low": 0, "high": 2}},
        "adaptation": [], "protocol": {odd: odd}, "directory": odd,
    })  # fmt: skip
    said = capsys.readouterr().out
    assert said.count("[red]x[/red]") == 6
    assert "\x1b" not in said


def test_an_interval_that_is_not_known_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"test": {"mse": {"mean": 1.0, "ci95": float("nan"), "n": 1}}, "adaptation": [], "protocol": {}}
    assert print_summary(summary) == 0
    said = capsys.readouterr().out
    assert "unknown" in said
    assert "nan" not in said


def test_a_report_of_a_stranger_s_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "=1+1<script>alert(1)</script>|`x`[y](javascript:z)\x1b[31m$\\frac{"
    meta = json.loads((run / "meta.json").read_text())
    meta["choices"] |= {"algorithm": odd, "model": odd, "task": odd}
    (run / "meta.json").write_text(json.dumps(meta))
    summary = json.loads((run / "summary.json").read_text())
    summary["protocol"][odd] = odd
    (run / "summary.json").write_text(json.dumps(summary))
    config = yaml.safe_load((run / "config.yaml").read_text())
    other = run.with_name("other")
    import shutil

    shutil.copytree(run, other)
    (other / "status.json").write_text(json.dumps({"state": "failed", "why": odd}))
    config["seed"] = 7
    assert main(["report", str(run.parent)]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert main(["report", str(run.parent), "out=page"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    for name in ("report.md", "report.html"):
        text = Path("page", name).read_text()
        tags = Tags()
        tags.feed(text)
        assert tags.found.count("script") == text.count("<script") == (name == "report.html")  # the page's own
        assert "\x1b" not in text
    tex = Path("page/report.tex").read_text()
    assert "\x1b" not in tex
    assert r"\textless{}script\textgreater{}" in tex
    assert r"\textbackslash{}frac\{" in tex
    rows = list(csv.reader(io.StringIO(Path("page/report.csv").read_text())))
    assert len(rows) > 1
    for row in rows:
        for cell in row:
            assert not cell.startswith(("=", "@"))


def test_predictions_of_odd_classes(capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    assert main(["task=vision/glyphs", "task.test_ways=[]", "model.width=4", "runner.iterations=0", "name=g",
                 "runner.validate_every=0", "runner.test_episodes=2", *QUICK[5:]]) == 0  # fmt: skip
    (run,) = Path("outputs").glob("g/*")
    noise = np.random.default_rng(0)
    for name in ("=1+1", "$\\frac{[red]", "a\x1b[31m"):
        for folder in ("support", "query"):
            Path(folder, name).mkdir(parents=True)
            for i in range(2):
                pixels = noise.integers(0, 255, (30, 30, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(Path(folder, name, f"={i}.png"))
    assert main(["adapt", str(run), "--support", "support", "--query", "query", "--out", "out"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    rows = list(csv.reader(io.StringIO(Path("out/predictions.csv").read_text())))
    assert len(rows) == 7
    assert all(not cell.startswith(("=", "+", "@")) for row in rows for cell in row)
    assert "'=1+1" in {cell for row in rows for cell in row}
    assert Path("out/sheet.png").stat().st_size > 0
