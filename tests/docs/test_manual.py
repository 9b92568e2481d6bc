"""The manual and the README agree with the program: commands compose, links resolve, tables are the catalogue's."""

from __future__ import annotations

import ast
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import metarun
from metarun.cli import adapt, bench, cache, main, report, reproduce, search
from metarun.cli.arguments import Command, parse
from metarun.cli.commands import COMMANDS
from metarun.cli.dispatch import split
from metarun.cli.help import command_help, overview, summary, topics
from metarun.cli.pages import DOCS
from metarun.cli.sweep import _jobs
from metarun.config.catalogue import catalogue
from metarun.config.check import check
from metarun.config.compose import compose, named
from metarun.config.overrides import read
from metarun.errors import UserError
from tests.script import script

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = {path.stem: path for path in (README, *sorted(Path(DOCS).glob("*.md")))}
OWN_TEST = {"extending"}
"""Pages whose commands another test runs as they are written."""


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def commands(text: str) -> Iterator[str]:
    """The lines of fenced console blocks and of indented blocks, without comments, but for blocks that need data."""
    text = re.sub(r"^    @software.*?^    }", "", text, flags=re.MULTILINE | re.DOTALL)  # the citation
    fences = re.finditer(r"^(<!-- [^\n]* -->\n)?```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [(found[1], found[2]) for found in fences]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks += [(found[1], found[2]) for found in re.finditer(r"\n(<!-- [^\n]* -->)?\n((?:    [^\n]+\n)+)", outside)]
    for mark, block in blocks:
        if "needs data" not in (mark or ""):
            yield from (line.strip() for line in block.splitlines() if line.strip())


BLOCKS = [(page, line) for page in PAGES if page not in OWN_TEST for line in commands(text_of(page))]
NAMED = [
    (page, code)
    for page in PAGES
    for code in re.findall(r"(?<!\| )`(metarun [^`\n]+)`", text_of(page))
    if not re.search(r"\.\.\.|\b(NAME|TOPIC|DIR|ID|SPACE|PATH|COMMAND)\b|\[|my_conf", code)
]
"""Commands within sentences and tables, but for those with a placeholder."""
ALL = {line: page for page, line in [*BLOCKS, *NAMED]}
"""Each command once."""


@pytest.mark.parametrize("line", ALL)
def test_a_command_of_the_manual_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    match words:
        case ["./scripts/run", *rest] | ["metarun" | ".venv-peers/bin/metarun", *rest]:
            examine(rest)
        case ["torchrun", *_, "-m", "metarun", _] | ["torchrun", *_]:
            examine(words[words.index("metarun") + 1 :])
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case ["wandb", *_, file]:
            assert (ROOT / file).is_file()
        case [script, *_] if script.startswith(("./scripts/", ".ci/")):
            assert (ROOT / script).is_file()
        case ["eval", line] if line.startswith("$(metarun "):
            examine(line.removeprefix("$(metarun ").removesuffix(")").split())
        case ["pip" | "source", *_]:
            pass
        case _:
            assert line.startswith(("outputs/", "*.", "summary", "metrics", "config", "checkpoints", "plots")), line


def examine(words: list[str]) -> None:
    """Parse a command and check the configuration that it composes, without running it."""
    if words == ["--version"]:
        assert main(words) == 0
        return
    name, rest = split(words)
    arguments = parse(COMMANDS[name], rest)
    match name:
        case _ if {"--cfg", "--help"} & {*arguments.options} or name in ("list", "show", "help"):
            assert main(words) == 0
        case "train" if not arguments["--shell-completion"]:
            sweep = arguments["--multirun"]
            jobs = _jobs(arguments.overrides)[1] if sweep else [arguments.overrides]
            for job in (jobs[0], jobs[-1])[: len(jobs)]:  # those between them take other values of the same keys
                check(named(compose(job)))
        case "collect":
            check(named(compose(arguments.overrides)))
        case "eval" | "resume" if rest:
            assert len(arguments.names) == 1
            read(arguments.overrides)
        case "adapt" if rest:
            adapt.read(arguments)
        case "report":
            report.read(arguments)
        case "search" if rest:
            search.space_of(arguments)
            check(named(compose(arguments.overrides)))
        case "reproduce":
            reproduce.recipe_of(arguments)
        case "bench":
            bench.read(arguments.overrides)
        case "cache":
            cache.read(arguments)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_help_of_a_command(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage, every option with its default, two examples that are understood; in any position of the words."""
    shown = command_help(command)
    assert shown.startswith(f"usage: {command.words}\n")
    for option in command.options:
        assert bool(re.search(rf"{option.name}(?![\w-])", shown)) != option.hidden
        assert option.default in " ".join(shown.split())
    assert all(f"{key.name}=" in shown for key in command.keys)
    assert command.page in topics()
    for line, _ in command.examples:
        assert f"\n  {line}\n" in shown
        examine(shlex.split(line)[1:])
    capsys.readouterr()
    for words in ([command.name, "--help"], [command.name, "some", "-h", "words=1"], ["-h", command.name, "-q"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"{shown}\n"
    assert max(map(len, shown.splitlines())) <= 100


def test_there_are_commands_to_examine() -> None:
    assert {page for page, _ in BLOCKS} >= {*PAGES} - OWN_TEST - {"python-api"}


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in text_of(page)])
def test_python_of_the_manual_compiles_and_names_what_is_there(page: str) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        tree = ast.parse(block)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "metarun"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("metarun"):
                if node.module == "metarun.sklearn":
                    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, each.name) for each in node.names)
        assert used <= set(metarun.__all__)


def test_messages_of_the_troubleshooting_page_are_the_programs() -> None:
    """Two words in a row of each message, values left out, stand in a row in the sources, or in a test of messages."""
    files = [*Path(metarun.__file__).parent.rglob("*.py"), ROOT / "tests" / "cli" / "test_bad_input.py"]
    sources = " ".join(path.read_text(encoding="utf-8") for path in files)
    sources = re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", sources))
    rows = [line.split(" | ")[0] for line in text_of("troubleshooting").splitlines() if re.match(r"\| `", line)]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row) if len(message.split()) > 2]
    assert messages
    for message in messages:
        words = re.sub(r"'[^']*'|\b[A-Z]+\b|\S*[=.]\S+", "...", message).split()
        pairs = [f"{one} {two}" for one, two in itertools.pairwise(words) if "..." not in (one, two)]
        assert not pairs or any(pair in sources for pair in pairs), message


def test_readme_is_short() -> None:
    assert len(text_of("README").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text_of(page)):
        if target.startswith("http"):
            continue
        path = (PAGES[page].parent / target).resolve() if target else PAGES[page]
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_readme_leads_to_every_page() -> None:
    missing = [topic for topic in topics() if f"metarun/docs/{topic}.md" not in text_of("README")]
    assert not missing


@pytest.mark.parametrize("topic", topics())
def test_a_topic_is_shown(topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    title = summary(text_of(topic))
    assert re.match(r"^# \S", text_of(topic))
    assert main(["help", topic]) == 0
    plain = capsys.readouterr().out
    assert plain.startswith(f"# {title}")
    assert "<!--" not in plain
    assert ".md)" not in plain.replace("outputs/reproduced/README.md)", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["help", topic]) == 0
    rendered = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", capsys.readouterr().out)
    assert title.split()[0] in rendered
    assert "```" not in rendered
    assert max(map(len, rendered.splitlines())) <= 80


def test_help_lists_commands_and_topics(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["help"]) == 0
    listed = capsys.readouterr().out
    assert listed == f"{overview(80)}\n"
    assert max(map(len, overview(80).splitlines())) <= 80
    assert all(f"\n  {name}" in listed for name in (*COMMANDS, *topics()))
    assert all(re.search(rf"^  {topic} +\S", listed, re.MULTILINE) for topic in topics())


def test_an_unknown_topic_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "algoritms"]) == 2
    assert "did you mean 'algorithms'" in capsys.readouterr().err
    assert main(["help", "adapt"]) == 0
    assert "usage: metarun adapt [RUN]" in capsys.readouterr().out


def test_help_imports_no_torch() -> None:
    code = "import sys; from metarun.cli import main; main(['help', 'tasks']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0


def test_the_overview_waits_for_no_import() -> None:
    code = (
        "import sys; before = {*sys.modules}; from metarun.cli import console\n"
        "try: console()\n"
        "finally: print(*sorted({*sys.modules} - before), file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, "--help"]
    wide = subprocess.run(words, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True, cwd=ROOT)
    assert (wide.returncode, wide.stdout) == (0, f"{overview(100)}\n")
    assert {*wide.stderr.split()} <= {
        "__future__",
        "errno",
        "metarun",
        "metarun.cli",
        "metarun.cli.pages",
        "metarun.streams",
    }
    narrow = subprocess.run(words, env={**os.environ, "COLUMNS": "70"}, capture_output=True, text=True, cwd=ROOT)
    assert (narrow.returncode, narrow.stdout) == (0, f"{overview(70)}\n")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return script("docs")


def test_tables_are_up_to_date(generator: ModuleType) -> None:
    """``python scripts/docs.py`` writes them."""
    stale = [page for page, text in generator.pages() if page.read_text(encoding="utf-8") != text]
    assert not stale, "run: python scripts/docs.py"


@pytest.mark.parametrize(("page", "group"), [("tasks", "task"), ("models", "model"), ("algorithms", "algorithm")])
def test_a_page_has_the_whole_catalogue(page: str, group: str, generator: ModuleType) -> None:
    rows = [name for found in generator.TABLE.finditer(text_of(page)) if found[2] == group for name in found[3].split()]
    assert sorted(rows) == sorted(entry.name for entry in catalogue(group))
    if group != "model":
        assert all(f"`{name.rpartition('/')[2]}`" in text_of("README") for name in rows)


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(UserError, match=re.escape("did you mean 'task.shot'")):
        examine(["task=regression/sinusoid", "task.shots=5"])
    with pytest.raises(UserError, match="no recipe"):
        examine(["reproduce", "maml/sinusoids"])


def test_the_table_of_few_shot_results_holds_what_the_records_hold(
    generator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers, _ = generator.recorded()
    known = [name for name in papers if generator.task_of(name) == "vision/fc100"]

    def record(name: str, value: float, shot: int, **model: str) -> dict[str, Any]:
        seeds = {str(seed): {"mean": value, "ci95": 0.3} for seed in range(3)}
        return {
            "claims": {papers[name].claims[0].id: {"seeds": seeds}}, "iterations": 1000, "cpu_s": {"0": 600.0},
            "protocol": {"data": "fc100", "shot": shot, "norm": "transductive"}, "configuration": {"model": model},
        }  # fmt: skip

    monkeypatch.setattr(generator, "recorded", lambda: (papers, {}))
    assert list(generator.few_shot(["fc100"])) == ["", "Not run: " + ", ".join(f"`{name}`" for name in known) + "."]
    results = {
        "protonet/fc100_5way_1shot": record("protonet/fc100_5way_1shot", 36.0, 1),
        "lite0/fc100_5way_1shot": record("lite0/fc100_5way_1shot", 60.0, 1, pretrained_on="ImageNet (overlaps)"),
    }
    monkeypatch.setattr(generator, "recorded", lambda: (papers, results))
    *rows, _, missing = generator.few_shot(["fc100"])
    assert rows[2:] == [
        "| FC100 | 1 | `lite0/fc100_5way_1shot` | 60 ± 0.3, 3 seeds | nothing: our own baseline |  | 1,000 | 10 "
        "| pretrained on ImageNet (overlaps); transductive; untraced |",
        "|  |  | `protonet/fc100_5way_1shot` | 36 ± 0.3, 3 seeds | 35.9 ± 0.17 (re-run by PaddleFSL) | pass | 1,000 of "
        "100,000 | 10 | transductive; untraced |",
    ]
    assert "`protonet/fc100_5way_5shot`" in missing
    assert "`protonet/fc100_5way_1shot`" not in missing
