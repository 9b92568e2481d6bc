"""Random command lines against metarun: each must end in a result or in a short message of metarun's own.

    python scripts/fuzz.py                        1,000 lines of seed 0
    python scripts/fuzz.py --seed 7 --count 200

A line is drawn from the commands, options, groups and keys of the catalogue, with values from plain to absurd, or is
a sensible line with a character changed. It runs in this process and ends before anything trains, unless it is about
the small run that is made first. What counts as a failure: an exception, an exit status other than 0, 1 and 2, a name
of a library, its classes or its errors in what is printed on stderr, and a message of more than four lines.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from metarun.cli import main
from metarun.cli.commands import COMMANDS
from metarun.config.catalogue import catalogue
from tests.words import library_word

SLOW = ("bench", "doctor", "list", "search", "reproduce", "report", "cache")
"""Commands that a few lines are enough for."""
SMALL = ["task=regression/sinusoid", "runner.iterations=1", "runner.test_episodes=2", "runner.val_episodes=2",
         "runner.plots=false", "tracker.wandb=disabled", "runner.tune_above=null", "name=small"]  # fmt: skip
VALUES = [
    "1", "0", "-1", "0.5", "1e-3", "1e400", "-inf", "nan", "null", "true", "False", "", "x", "1_000", "007", "0x1F",
    "99999999999999999999", "9" * 400, "9" * 5000, "10**30", "[]", "[1,2]", "[1,[2,x]]", "{}", "{a:1}", '{"a": 1}',
    "{a:{b:[}}", "~/x", "~", "~nobody/x", "/", ".", "..", "/dev/null", "/root/.ssh", "nowhere/at/all", "öl", "写真",
    "\U0001f600", "a b", "a=b", "a:b", "a,b", "1,2,3", "a#b", "a&b",
    "don't", '"x"', "'x'", '"x', "'", '"', "\\", "\\\\",
    "a\\,b", "(", ")", "[", "]", "{", "}", "[1", "1]", "f(x)", "x (1)", "${seed}", "${nope}", "${", "${}", "$x",
    "${oc.env:HOME}", "${oc.env:NOPE}", "${oc.env:NOPE,3}", "${now:%Y}", "${foo:1}", "choice(1,2)", "range(3)",
    "range(0,0)", "range(0,100000000)", "range(0,1,0)", "range(x)", "interval(0,1)", "glob(m*)", "glob(", "sort(3,1)",
    "shuffle(1,2)", "tag(x,1)", "int(2.5)", "int(x)", "float(1)", "str(1)", "bool(x)", "extend_list(1)", "*", "?", "@",
    "!", "^", "`ls`", "|", ";", "<x>", "a\tb", "a\nb", "\x1b[31m", "a\0b", "\udcff", "x" * 300, "x" * 20_000, "[" * 60,
    "cpu", "cuda:99", "xpu", "foo", "auto", "float16", "-", "--", "+1", "None", "none", "yes", "1:30", "2020-01-01",
    "???", "_target_", "os.system", "[bold]x[/bold]", "a/b/c", "../../x", "1e", "1.2.3", " ", "\u202e", "%s", "{0}",
]  # fmt: skip
FLAGS = [
    "-m", "--multirun", "--cfg", "--cfg=job", "--cfg=all", "--resolve", "--package=seed", "-p", "--info=defaults",
    "--info=foo", "--config-path", "--config-name=x", "-cn", "--config-dir", "--config-dir=nowhere", "--help", "-h",
    "--experimental-rerun", "--hydra-help", "--version", "-sc", "--run", "--foo", "-x", "--", "-", "--trust", "--val",
    "--trials=0", "--seeds", "--jobs=x", "--support=x", "--query", "--out=/dev/null", "--steps=-1", "-m=3",
]  # fmt: skip
HYDRA = [
    "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/launcher", "hydra.launcher.foo", "hydra/sweeper",
    "hydra.searchpath", "hydra.job.chdir", "hydra.verbose", "hydra.mode", "hydra", "hydra.foo", "hydra/foo",
]  # fmt: skip


class Lines:
    """An endless stream of command lines, the same for the same seed."""

    def __init__(self, seed: int, run: str) -> None:
        self.random = random.Random(seed)
        self.run = run
        groups = ("task", "model", "algorithm", "experiment", "images", "runner", "tracker")
        entries = {group: list(catalogue(group)) for group in groups}
        self.options = [(group, entry.name) for group in groups for entry in entries[group]]
        self.keys = sorted({key for group in groups for e in entries[group] for key in _keys(group, e.section)})
        self.keys += ["seed", "name", "paper", "search", "experiment", *HYDRA]

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            kind = self.random.random()
            words = self._command() if kind < 0.25 else self._training()
            if self.random.random() < 0.25:
                words = self._mutated(words)
            yield words

    def _training(self) -> list[str]:
        words = ["=".join(self.random.choice(self.options)) for _ in range(self.random.choice([0, 1, 1, 2, 3]))]
        words += [self._override() for _ in range(self.random.choice([0, 1, 1, 2, 3]))]
        if self.random.random() < 0.25:
            words.insert(0, "-m")
        if self.random.random() < 0.15:
            words.insert(self.random.randint(0, len(words)), self.random.choice(FLAGS))
        return words

    def _override(self) -> str:
        sign = self.random.choice(["", "", "", "", "", "", "+", "++", "~"])
        key = self.random.choice(self.keys)
        if self.random.random() < 0.1:
            key, _ = self.random.choice(self.options)
        elif self.random.random() < 0.1:
            key += self.random.choice([".x", ".0", "x", "@y", "..", "/z", "-"])
        return sign + key + ("=" if sign != "~" or self.random.random() < 0.5 else "") + self.random.choice(VALUES)

    def _command(self) -> list[str]:
        command = self.random.choice([c for c in COMMANDS if c not in SLOW] * 8 + list(SLOW))
        words = [command]
        if command in ("eval", "resume", "adapt", "export"):
            words.append(self.random.choice([self.run] * 6 + [".", "nowhere", "/dev/null", "é", "\udcff", "a=b", "~"]))
            words += [self._override() for _ in range(self.random.choice([0, 1, 1, 2]))]
        elif command == "show":
            words.append(self.random.choice([self.random.choice(self.options)[1], *VALUES]))
        elif command not in ("doctor", "bench", "cache", "train") or self.random.random() < 0.5:
            words.append(self.random.choice([v for v in VALUES if v]))
        if self.random.random() < 0.4 or command in ("doctor", "bench", "cache"):
            words.append(self.random.choice(FLAGS))
        return words

    def _mutated(self, words: list[str]) -> list[str]:
        """The line with a character of a word dropped, doubled or replaced."""
        if not (places := [n for n, word in enumerate(words) if 0 < len(word) < 500]):
            return words
        place = self.random.choice(places)
        at = self.random.randrange(len(words[place]))
        word = words[place]
        new = self.random.choice(["", word[at] * 2, self.random.choice("()[]{},'\"=~#$\\ é\0-+.:/")])
        return [*words[:place], word[:at] + new + word[at + 1 :], *words[place + 1 :]]


def _keys(prefix: str, section: dict[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        yield f"{prefix}.{key}"
        if isinstance(value, dict):
            yield from _keys(f"{prefix}.{key}", value)


def try_line(words: list[str]) -> tuple[object, str, str | None]:
    """The exit status, what stood on stderr, and what was wrong with them, if anything."""
    out, err = io.StringIO(), io.StringIO()
    path, argv, environment = list(sys.path), list(sys.argv), dict(os.environ)
    nothing: dict[str, Any] = {}
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch("metarun.runs.launch.carry_out", return_value=nothing),
        mock.patch("metarun.runs.resume.carry_out", return_value=nothing),
        mock.patch("metarun.cli.sweep.launch"),
        mock.patch("metarun.cli.sweep._report", return_value=0),
        mock.patch("metarun.cli.search.run_all"),
        mock.patch("metarun.cli.reproduce.run_all"),
    ):
        try:
            status: object = main(list(words))
        except (Exception, SystemExit) as error:
            return repr(error), err.getvalue(), f"raised {error!r:.200}"
    sys.path[:], sys.argv = path, argv
    os.environ.clear()
    os.environ.update(environment)
    said = err.getvalue()
    if status not in (0, 1, 2):
        return status, said, f"exit status {status}"
    if status and not said.strip():
        return status, said, "no message"
    bare = said
    for typed in sorted(
        {part for word in words for part in (word, *word.split("=", 1)) if part}, key=len, reverse=True
    ):
        bare = bare.replace(typed, "")
    if found := library_word(bare):
        return status, said, f"the word {found!r}"
    if status and len(said.strip().splitlines()) > 4:
        return status, said, "a long message"
    return status, said, None


def fuzz(seed: int, count: int, seconds: float = 10.0) -> tuple[Counter[object], list[str]]:
    """How often each exit status came, and the lines that failed; run in an empty directory, left as it was."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, WANDB_MODE="disabled"):
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert main(list(SMALL)) == 0
            (run,) = Path("outputs/small").iterdir()
            statuses: Counter[object] = Counter()
            failures = []
            for number, words in zip(range(count), Lines(seed, str(run)), strict=False):
                start = time.process_time()
                status, said, wrong = try_line(words)
                statuses[status] += 1
                if wrong is None and time.process_time() - start > seconds:
                    wrong = f"{time.process_time() - start:.0f} s"
                if wrong:
                    shown = " ".join(shlex.quote(word[:200]) for word in words)
                    failures.append(f"{number}: {wrong}\n  metarun {shown}\n  {said.strip()[:500]}")
            return statuses, failures
        finally:
            os.chdir(before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    asked = parser.parse_args()
    found, failed = fuzz(asked.seed, asked.count)
    for each in failed:
        print(each.encode("utf-8", "backslashreplace").decode())
    print(f"{asked.count} lines of seed {asked.seed}: {len(failed)} failed; exit statuses {dict(found)}")
    sys.exit(bool(failed))
