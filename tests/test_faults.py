"""The table of seeded faults fits the code; a run of them tells what was noticed from what was not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.script import script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def seeded() -> ModuleType:
    return script("faults")


def test_every_fault_applies_and_names_tests_that_there_are(seeded: ModuleType) -> None:
    faults, wrong = seeded.table(ROOT), []
    files = {fault.file: (ROOT / fault.file).read_text() for fault in faults}
    meant = {file: ast.dump(ast.parse(text)) for file, text in files.items()}
    for fault in faults:
        text = files[fault.file]
        try:
            changed = fault.applied(text)
        except seeded.OutOfDate as error:
            wrong.append(str(error))
            continue
        if ast.dump(ast.parse(changed)) == meant[fault.file]:
            wrong.append(f"{fault.name} changes nothing")
        for test in fault.tests:
            file, _, name = test.partition("[")[0].partition("::")
            if not (ROOT / file).exists() or (name and f"def {name}(" not in (ROOT / file).read_text()):
                wrong.append(f"{fault.name}: there is no {test}")
    assert not wrong, "\n".join(wrong)
    assert len({(fault.family, fault.name) for fault in faults}) == len(faults) > 0


SUMS = "def total(a, b):\n    return a + b\n\n\ndef half(a):\n    return a / 2\n"
TESTED = "from metarun.sums import total\n\n\ndef test_total():\n    assert total(2, 3) == 5\n"
ENTRY = "- {{name: {name}, what: {name}, file: metarun/sums.py, old: {old}, new: {new}, tests: [tests/test_sums.py]}}\n"
RUN = (
    "import sys; sys.path.insert(0, sys.argv[1]); import faults; from pathlib import Path; "
    "faults.PRELOADED = ('pytest',); sys.exit(faults.main(sys.argv[3:], Path(sys.argv[2])))"
)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The runner on a small project of its own; the entries of its table are name, old and new text."""
    for path, text in {"metarun/__init__.py": "", "metarun/sums.py": SUMS, "tests/test_sums.py": TESTED}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "tests" / "faults").mkdir()

    def run(*entries: tuple[str, str, str], words: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        lines = (ENTRY.format(name=name, old=old, new=new) for name, old, new in entries)
        (tmp_path / "tests" / "faults" / "sums.yaml").write_text("".join(lines))
        names = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True, env={**os.environ, **names})
        command = [sys.executable, "-c", RUN, str(ROOT / "scripts"), str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def test_a_run_tells_what_was_noticed_from_what_was_not(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run(("wrong", "a + b", "a - b"), ("unseen", "a / 2", "a / 3"), ("unreadable", "a / 2", "a /"))
    assert done.returncode == 1
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["caught", "sums/wrong"] in [line[:2] for line in lines]
    assert ["SURVIVED", "sums/unseen"] in [line[:2] for line in lines]
    assert "BROKEN: the tests did not run  sums/unreadable" in done.stdout
    assert "1 of 3 faults caught (33.3 %)" in done.stdout
    assert "tests/test_sums.py::test_total" in done.stdout


@pytest.mark.parametrize(
    ("entry", "words", "says"),
    [
        (("gone", "a * b", "a - b"), (), "gone: its old text stands 0 times in metarun/sums.py"),
        (("twice", "return a", "return b"), (), "twice: its old text stands 2 times in metarun/sums.py"),
        (("wrong", "a + b", "a - b"), ("--only", "worng"), "no such fault: worng"),
    ],
)
def test_what_a_run_refuses(
    entry: tuple[str, str, str],
    words: Sequence[str],
    says: str,
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run(entry, words=words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_tests_that_fail_without_a_fault_are_refused(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "tests" / "test_sums.py").write_text(TESTED.replace("5", "6"))
    done = run(("wrong", "a + b", "a - b"))
    assert done.returncode == 2
    assert "the tests do not pass on the code as it is" in done.stderr
