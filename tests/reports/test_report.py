"""``metarun report``: what is grouped, compared and left out, and the page that says so."""

from __future__ import annotations

import base64
import csv
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarun.cli import main
from metarun.evaluation.statistics import Mean
from metarun.reports.comparison import Comparison, compare
from metarun.reports.curves import MAX_CURVES, figures, regret_curve
from metarun.reports.overview import overview
from metarun.reports.page import markdown, sections
from metarun.reports.runs import gather
from metarun.reports.scores import aggregate
from metarun.reports.tables import interval
from metarun.runs.history import Job
from tests.reports.made import edited, made

random = np.random.default_rng(0)


def curve(mean: float, spread: float = 0.1, n: int = 10, steps: int = 1) -> Any:
    """Results [n, steps + 1] whose last column has exactly this mean."""
    values = random.normal(0, spread, (n, steps + 1))
    return mean + values - values[:, -1].mean()


def of(root: Path) -> Comparison:
    return compare(*gather([str(root)]))


def said(comparison: Comparison) -> str:
    return markdown(list(sections(comparison, [])), "")


def test_seeds_make_a_row_and_keys_tell_rows_apart(tmp_path: Path) -> None:
    for rate in (0.01, 0.1):
        for seed, value in enumerate((1.0, 2.0, 3.0)):
            made(tmp_path, curve(value + rate), seed=seed, keys=[("algorithm", "inner_lr", rate)])
    made(tmp_path, curve(0.5), algorithm="anil")
    (setting,) = of(tmp_path).settings
    assert setting.columns == ["algorithm.inner_lr"]  # not only_maml, only_anil, seed or runner.directory
    rows = {row.label: row.estimate("mse") for row in setting.rows}
    assert set(rows) == {"anil inner_lr=0.01", "maml inner_lr=0.01", "maml inner_lr=0.1"}
    assert rows["maml inner_lr=0.1"] == Mean(pytest.approx(2.1), pytest.approx(4.302652729911275 / 3**0.5), 3)
    assert rows["anil inner_lr=0.01"].n == 1  # type: ignore[union-attr]


def test_two_protocols_are_never_averaged(tmp_path: Path) -> None:
    for shot in (5, 10):
        for norm in ("support", "transductive"):
            made(tmp_path, curve(shot), shot=shot, norm=norm, seed=shot)
    stale = made(tmp_path, curve(7), seed=8)  # the same configuration, but another version judged otherwise
    protocol = json.loads((stale / "summary.json").read_text())["protocol"]
    edited(stale, protocol={**protocol, "selection": "best"})
    comparison = of(tmp_path)
    assert [setting.title for setting in comparison.settings] == [
        "regression/sinusoid shot=5", "regression/sinusoid shot=10",
    ]  # fmt: skip
    assert [len(setting.rows) for setting in comparison.settings] == [3, 2]
    assert all(len(row.runs) == 1 for setting in comparison.settings for row in setting.rows)
    text = said(comparison)
    assert "the rows' protocols differ in norm: support (maml norm=support" in text
    assert "the rows' protocols differ in selection: last" in text


def test_a_run_made_twice_is_not_two_seeds(tmp_path: Path) -> None:
    old = made(tmp_path, curve(1.0), start="2026-01-01T00:00:00+00:00")
    new = made(tmp_path, curve(2.0), start="2026-01-02T00:00:00+00:00", keys=[("runner", "directory", "elsewhere")])
    comparison = of(tmp_path)
    assert [run.path for run in comparison.settings[0].runs] == [new]
    assert [(left.path, left.state) for left in comparison.left_out] == [(old, "repeated")]


@pytest.mark.parametrize(("task", "best", "near"), [("regression/sinusoid", "a", "b"), ("vision/glyphs", "c", "b")])
def test_the_best_and_what_lies_in_its_interval(task: str, best: str, near: str, tmp_path: Path) -> None:
    means = (
        {"a": (1.0, 1.2), "b": (1.1, 1.3), "c": (4.0, 4.2)}
        if best == "a"
        else {"a": (1, 2), "b": (4, 4), "c": (4, 4.2)}
    )
    for algorithm, values in means.items():
        for seed, value in enumerate(values):
            made(tmp_path, curve(value), task=task, algorithm=algorithm, seed=seed)
    (setting,) = of(tmp_path).settings
    standing = {row.algorithm: how for row, how in setting.standing(setting.metric).items()}
    assert standing == {best: "best", near: "within"}


def test_pairs_are_episodes_of_one_seed(tmp_path: Path) -> None:
    hard = random.normal(0, 5, (2, 30, 1))  # a test task is hard for every learner
    for seed in (0, 1):
        for algorithm, better in (("maml", 0.0), ("anil", 1.0)):
            made(tmp_path, hard[seed] + better + random.normal(0, 0.1, (30, 1)), algorithm=algorithm, seed=seed)
    made(tmp_path, curve(3, n=30), algorithm="maml", seed=7)  # nothing to pair it with
    (setting,) = of(tmp_path).settings
    (pair,) = setting.pairs()
    assert (pair.a.algorithm, pair.b.algorithm) == ("anil", "maml")
    assert pair.difference is not None
    assert (pair.difference.seeds.n, pair.difference.episodes.n) == (2, 60)
    stored = {(run.choice("algorithm"), run.seed): run.episodes["mse"][:, -1] for run in setting.runs}
    differences = [stored["anil", seed] - stored["maml", seed] for seed in (0, 1)]
    half = 1.96 * (sum(np.var(d, ddof=1) / 30 for d in differences) / 4) ** 0.5
    assert pair.difference.episodes.mean == pytest.approx(np.mean(differences))
    assert pair.difference.episodes.half_width == pytest.approx(half)
    assert half < 0.1
    assert "| anil | maml | 2 | 60 |" in said(of(tmp_path))
    assert "| maml, of these runs |" in said(of(tmp_path)) or "| maml |\n" in said(of(tmp_path))  # mse: less is better


@pytest.mark.parametrize("reason", ["no seed in common", "no test.npz", "configured differently"])
def test_what_cannot_be_paired_says_so(reason: str, tmp_path: Path) -> None:
    one = made(tmp_path, curve(1))
    keys = [("task", "noise", 0.1)] if reason == "configured differently" else []
    made(tmp_path, curve(2), algorithm="anil", seed=int(reason == "no seed in common"), keys=keys)
    if reason == "no test.npz":
        (one / "test.npz").unlink()
    (pair,) = of(tmp_path).settings[0].pairs()
    assert pair.difference is None
    assert reason in pair.why


def test_many_rows_are_paired_with_the_best(tmp_path: Path) -> None:
    for i, algorithm in enumerate(("a", "b", "c", "d", "e")):
        made(tmp_path, curve(5 - i), algorithm=algorithm)
    (setting,) = of(tmp_path).settings
    assert [(pair.a.label, pair.b.label) for pair in setting.pairs()] == [("e", x) for x in "abcd"]


def test_of_many_rows_the_best_are_drawn(tmp_path: Path) -> None:
    for number in range(MAX_CURVES + 3):
        made(tmp_path, curve(1.0 + number), keys=[("algorithm", "inner_lr", 0.01 * (1 + number))])
    ((_, caption, figure), *_) = figures(of(tmp_path))
    assert f"the best {MAX_CURVES} of {MAX_CURVES + 3}" in caption
    (legend,) = figure.legends
    rates = [float(text.get_text().rpartition("=")[2]) for text in legend.get_texts()]
    assert sorted(rates) == pytest.approx([0.01 * (1 + number) for number in range(MAX_CURVES)])  # of the lowest error


def test_adaptation_over_seeds(tmp_path: Path) -> None:
    results = [np.array([[4.0, 2.0, 1.0], [6.0, 4.0, 3.0]]), np.array([[5.0, 5.0, 3.0], [5.0, 5.0, 5.0]])]
    for seed, values in enumerate(results):
        made(tmp_path, values, seed=seed)
    (row,) = of(tmp_path).settings[0].rows
    at, means = row.adaptation_curve() or ([], [])
    assert at == [0, 1, 2]
    assert [m.mean for m in means] == [5.0, 4.0, 3.0]
    height = row.efficiency()
    areas = [(4.0 + 2.5) / 2, (5.0 + 4.5) / 2]
    assert height is not None
    assert height.mean == pytest.approx(sum(areas) / 2)
    iterations, minutes, _ = row.learning_curve("mse") or ([], [], [])
    assert (iterations, minutes) == ([10, 20], [0.5, 1.0])


def test_regret_through_a_trial(tmp_path: Path) -> None:
    """Of 2 paid with the task known, two seeds get 1 and 2, and 0 and 1, in the two episodes of a trial."""
    rewards = [np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])]
    for seed, values in enumerate(rewards):
        path = made(tmp_path, values, seed=seed)
        points = [
            {**p, "episode": i} for i, p in enumerate(json.loads((path / "summary.json").read_text())["adaptation"], 1)
        ]
        for point in points:
            point.pop("step", None)
        edited(path, adaptation=points, references={"random": 1.0, "oracle": 4.0})
    comparison = of(tmp_path)
    (row,) = comparison.settings[0].rows
    at, means = regret_curve(row) or ([], [])
    assert at == [1, 2]
    assert [m.mean for m in means] == [1.5, 2.0]
    (figure,) = [figure for name, _, figure in figures(comparison) if name.startswith("adaptation_regret")]
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert drawn["random actions"] == [1.5, 3.0]
    assert [1.5, 2.0] in drawn.values()
    edited(path, references={"random": 1.0})
    assert regret_curve(of(tmp_path).settings[0].rows[0]) is None


def test_runs_from_before_the_summary_said_so_much(tmp_path: Path) -> None:
    path = made(tmp_path, curve(2.0))
    made(tmp_path, curve(2.0), algorithm="anil", norm="running")
    for run in tmp_path.glob("*/*"):
        edited(run, metric=None, higher_is_better=None, protocol_of_learner=None, validated=None, peak_mb=None)
    (setting,) = of(tmp_path).settings  # one: norm is the learners' own
    assert (setting.metric, setting.higher_is_better) == ("mse", False)
    row = next(row for row in setting.rows if row.first.path == path)
    assert row.learning_curve("mse")[1] == pytest.approx([61 / 120, 61 / 60])  # type: ignore[index]


def test_scores_over_settings(tmp_path: Path) -> None:
    for task, values in (("regression/sinusoid", {"maml": (1, 2), "anil": (3, 5)}),
                         ("vision/glyphs", {"maml": (0.5, 0.9), "anil": (0.7, 0.8)})):  # fmt: skip
        for algorithm, means in values.items():
            for seed, value in enumerate(means):
                made(tmp_path, curve(value), task=task, algorithm=algorithm, seed=seed)
    scores = aggregate(of(tmp_path).settings)
    assert not isinstance(scores, str)
    # sinusoid: 1 -> 1, 2 -> .75, 3 -> .5, 5 -> 0 (less is better); glyphs: .5 -> 0, .9 -> 1, .7 -> .5, .8 -> .75
    assert scores["maml"].mean == pytest.approx((1 + 0.75 + 0 + 1) / 4)
    assert scores["maml"].middle == pytest.approx((0.75 + 1) / 2)
    assert scores["anil"].mean == pytest.approx((0.5 + 0 + 0.5 + 0.75) / 4)
    assert scores["anil"].profile[[0, 49, 51, 99]].tolist() == [0.75, 0.75, 0.25, 0.0]


def damaged(path: Path, how: str) -> str:
    """Harm a finished run; returns what the report must say of it."""
    if how == "summary":
        (path / "summary.json").write_text('{"iterations": 2')
    elif how == "no summary":
        (path / "summary.json").unlink()
        return "no summary.json"
    elif how == "no test":
        edited(path, test=None)
        return "lacks 'test'"
    elif how == "odd test":
        edited(path, test=[1])
        return "not what a run writes"
    elif how == "config":
        (path / "config.yaml").write_text("a: [1")
    elif how == "no config":
        (path / "config.yaml").unlink()
        return "no config.yaml"
    elif how == "meta":
        (path / "meta.json").write_text("{")
        return "meta.json is damaged"
    elif how == "metrics":
        (path / "metrics.jsonl").write_text('{"iteration": 1, "val/mse": \n')
        return "metrics.jsonl, line 1"
    elif how == "episodes":
        os.truncate(path / "test.npz", 40)
        return "test.npz cannot be read"
    elif how == "status":
        (path / "status.json").write_text("")
        return "status.json"
    return ""


HARMS = ("summary", "no summary", "no test", "odd test", "config", "no config", "meta", "metrics", "episodes", "status")


def test_damaged_runs_are_listed_with_their_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = made(tmp_path, curve(1.0))
    reasons = {path: damaged(path, how) for how in HARMS for path in [made(tmp_path, curve(2.0), seed=5)]}
    comparison = of(tmp_path)
    assert [run.path for setting in comparison.settings for run in setting.runs] == [whole]
    told = {left.path: left for left in comparison.left_out}
    assert set(told) == set(reasons)
    for path, reason in reasons.items():
        assert told[path].state == "damaged"
        assert reason in told[path].reason
    assert main(["report", str(tmp_path)]) == 0
    assert "1 finished run of 1 configuration in 1 setting, 10 left out" in capsys.readouterr().out


def test_unfinished_runs_are_listed_with_their_reason(tmp_path: Path) -> None:
    failed = made(tmp_path, curve(1), state="failed", why="RunFailed: loss became NaN at iteration 7")
    stopped = made(tmp_path, curve(1), state="interrupted", why="signal 15")
    killed = made(tmp_path, curve(1), state="running")
    running = made(tmp_path, curve(1), state="running")
    untested = made(tmp_path, curve(1))
    edited(untested, test={}, adaptation=[])
    with open(running / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        comparison = of(tmp_path)
    assert comparison.settings == []
    assert {left.path: (left.state, left.reason) for left in comparison.left_out} == {
        failed: ("failed", "RunFailed: loss became NaN at iteration 7"),
        stopped: ("interrupted", "signal 15 after iteration 20; it can be resumed"),
        killed: ("killed", "after iteration 20; it can be resumed"),
        running: ("running", "at iteration 20"),
        untested: ("untested", "runner.test_episodes=0"),
    }
    assert main(["report", str(tmp_path), "out=page"]) == 0
    assert "loss became NaN" in Path("page/report.html").read_text()


class Page(HTMLParser):
    """Every table's caption, header and rows, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.best: list[str] = []
        self._rows: list[list[str]] = []
        self._text: list[str] | None = None
        self._classes = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th", "caption"):
            self._text, self._classes = [], str(dict(attrs).get("class"))

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._text is not None:
            self._rows[-1].append("".join(self._text))
            if "best" in self._classes:
                self.best.append("".join(self._text))
        elif tag == "caption" and self._text is not None:
            self.tables["".join(self._text)] = self._rows
        if tag in ("td", "th", "caption"):
            self._text = None


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A multirun of 3 algorithms, 3 seeds and 2 tasks, one of which failed, and a run that is not of it."""
    group = "2026-01-01_00-00-00-000000"
    for task in ("regression/sinusoid", "vision/glyphs"):
        for i, algorithm in enumerate(("anil", "fomaml", "maml")):
            for seed in range(3):
                lost = (task, algorithm, seed) == ("vision/glyphs", "anil", 1)
                made(
                    tmp_path / "outputs", curve(1 - 0.1 * i, 0.05, 200, 5), task=task, algorithm=algorithm, seed=seed,
                    group=group, state="failed" if lost else "finished",
                    why="RunFailed: <no space> left" if lost else "",
                )  # fmt: skip
    made(tmp_path / "outputs", curve(9), algorithm="reptile")
    folder = tmp_path / "outputs" / "multirun" / group
    folder.mkdir(parents=True)
    (folder / "multirun.yaml").write_text("{}")
    return folder


def test_a_repeated_sweep_is_whole(sweep: Path) -> None:
    """It makes the failed run alone; those that an earlier sweep finished are noted."""
    runs, left_out = gather([str(sweep)])
    again = sweep.with_name("2026-01-02_00-00-00-000000")
    again.mkdir()
    for number, run in enumerate(runs):
        Job("", "done before", run=str(run.path)).write(again, number)
    made(sweep.parents[1], curve(1, n=200, steps=5), task="vision/glyphs", algorithm="anil", seed=1, group=again.name)
    whole, missing = gather([str(again)])
    assert (len(runs), len(left_out), len(whole), len(missing)) == (17, 1, 18, 0)
    assert len(gather([str(sweep), str(again)])[0]) == 18


def test_a_page_of_a_multirun(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.process_time()
    assert main(["report", str(sweep), "out=page"]) == 0
    assert time.process_time() - start < 10
    told = capsys.readouterr()
    assert "17 finished runs of 6 configurations in 2 settings, 1 left out" in told.out
    assert "left out" in told.err
    text = Path("page/report.html").read_text()
    page = Page()
    page.feed(text)

    comparison = of(sweep)
    for setting in comparison.settings:
        header, *rows = page.tables[setting.title]
        assert header[:2] == ["algorithm", "seeds"]
        assert [row[0] for row in rows] == ["anil", "fomaml", "maml"]
        for row, shown in zip(setting.rows, rows, strict=True):
            values = [run.summary["test"][setting.metric]["mean"] for run in row.runs]
            half = (
                {2: 12.706204736432095, 3: 4.302652729911275}[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5
            )
            assert shown[1] == str(len(values))
            assert shown[2].rstrip(" ★≈") == interval(Mean(float(np.mean(values)), float(half), len(values)))
        _, *pairs = page.tables[f"{setting.title}: {setting.metric}, episode by episode"]
        assert [pair[:2] for pair in pairs] == [["anil", "fomaml"], ["anil", "maml"], ["fomaml", "maml"]]
        assert {pair[3] for pair in pairs} == ({"600"} if setting.task == "regression/sinusoid" else {"400", "600"})
    assert {row[0]: row[1].endswith("★") for row in page.tables["regression/sinusoid"][1:]} == {
        "anil": False, "fomaml": False, "maml": False,
    }  # fmt: skip
    assert page.tables["regression/sinusoid"][3][2].endswith(" ★")  # maml has the least error,
    assert page.tables["vision/glyphs"][1][2].endswith(" ★")  # and anil the highest accuracy
    assert len(page.tables["cost"]) == 1 + 6
    (lost,) = page.tables["runs left out"][1:]
    assert (lost[0], lost[2]) == ("failed", "RunFailed: <no space> left")

    assert page.addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not page.tags & {"link", "iframe", "object"}
    (script,) = re.findall(r"<script>(.*)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f"metarun report {sweep} out=page  (metarun {version('metarun')})" in text
    heads = re.findall(r"<th[ >][^>]*>", text)
    assert all(re.match(r'<th scope="(col|row)"', head) for head in heads)
    assert sum('"row"' in head for head in heads) == text.count("<tr>") - text.count("<thead>")
    assert "@import" not in text
    assert "url(" not in text
    pictures = sorted(path.name for path in Path("page").glob("*.png"))
    assert pictures == ["adaptation_1.png", "adaptation_2.png", "learning_1.png", "learning_2.png", "profiles.png"]
    assert sum(address.startswith("data:") for address in page.addresses) == len(pictures)
    assert all(f"]({name})" in Path("page/report.md").read_text() for name in pictures)

    rows = list(csv.DictReader(io.StringIO(Path("page/report.csv").read_text())))
    assert len(rows) == 6
    row = next(r for r in rows if (r["task"], r["algorithm"]) == ("vision/glyphs", "anil"))
    assert row["seeds"] == "0 2"
    assert float(row["mean"]) == pytest.approx(np.mean([float(v) for v in row["per_seed"].split()]))
    assert len(list(csv.DictReader(io.StringIO(Path("page/pairs.csv").read_text())))) == 6


def test_the_overview_has_only_learners_that_meet_in_two_settings(tmp_path: Path) -> None:
    there = {"regression/sinusoid": ("anil", "maml", "reptile"), "vision/glyphs": ("anil", "maml", "protonet")}
    for task, algorithms in there.items():
        for algorithm in algorithms:
            made(tmp_path, curve(0.5), task=task, algorithm=algorithm)
    made(tmp_path, curve(0.5), shot=10, algorithm="reptile")  # it meets nobody there
    table = overview(of(tmp_path))
    assert table is not None
    assert [row[0].text for row in table.rows] == ["anil", "maml"]
    assert {heading.split(":")[0] for heading in table.headings[1:]} == {"regression/sinusoid shot=5", "vision/glyphs"}
    assert table.notes[-1] == "2 more learners do not meet another in two settings"
    apart, _ = gather([str(tmp_path / "sinusoid-anil"), str(tmp_path / "glyphs-maml")])
    assert overview(compare(apart, [])) is None


def test_no_star_without_an_interval(tmp_path: Path) -> None:
    """A single test task, and a single seed of each setting, leave the interval unknown."""
    for task in ("regression/sinusoid", "vision/glyphs"):
        for i, algorithm in enumerate(("anil", "maml")):
            path = made(tmp_path, curve(1 + i), task=task, algorithm=algorithm)
            metric = "mse" if task.startswith("regression") else "accuracy"
            edited(path, test={metric: {"mean": 1.0 + i, "ci95": None, "n": 1}})
    comparison = of(tmp_path)
    assert "★" not in said(comparison)
    bests = {setting.metric: setting.best(setting.metric) for setting in comparison.settings}
    assert {metric: row.algorithm for metric, row in bests.items() if row} == {"mse": "anil", "accuracy": "maml"}


def test_tables_for_a_paper(sweep: Path, tmp_path: Path) -> None:
    made(tmp_path / "outputs", curve(0.2, n=200, steps=5), algorithm="a_b&c%", group=sweep.name)
    assert main(["report", str(sweep), "out=page"]) == 0
    text = Path("page/report.tex").read_text()
    assert r"a\_b\&c\% & $1$ & {\boldmath\bfseries $0.200" in text
    assert "★" not in text
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 1
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in lines)
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    if shutil.which("pdflatex"):
        packages = r"\documentclass{article}\usepackage{booktabs,textcomp}"
        Path("page/paper.tex").write_text(rf"{packages}\begin{{document}}\input{{report}}\end{{document}}")
        done = subprocess.run(["pdflatex", "-halt-on-error", "paper"], cwd="page", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]


def test_a_report_in_the_terminal_does_not_import_torch(sweep: Path) -> None:
    script = (
        "import sys; from metarun.cli import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    words = [sys.executable, "-c", script, "report", str(sweep)]
    done = subprocess.run([*words, "out=page"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("vision/glyphs", "episode by episode", "area under the curve", "interquartile mean", "peak MB"):
        assert part in done.stdout
    assert "<no space> left" in done.stdout


def test_results_by_the_number_of_classes(tmp_path: Path) -> None:
    values = curve(0.9)
    keys = [("task", "way", 5)]
    path = made(tmp_path, values, task="vision/glyphs", others={"accuracy_20way": values - 0.1}, keys=keys)
    edited(path, protocol={"way": 5, "norm": "support"})
    assert main(["report", str(tmp_path), "out=page"]) == 0
    assert Path("page/by_way_1.png").is_file()
    page = Page()
    page.feed(Path("page/report.html").read_text())
    assert page.tables["vision/glyphs"][0] == ["algorithm", "seeds", "accuracy ↑", "accuracy_20way ↑"]
    assert [cell[:3] for cell in page.tables["vision/glyphs"][1][2:]] == ["0.9", "0.8"]
