"""What other systems and versions of Python lack or add, emulated here: Windows' modules, Python 3.14's argparse."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metarun import locks
from metarun.cli.train import _any_help
from metarun.locks import lock, try_lock

WITHOUT_POSIX = """
import enum, os, signal, subprocess, sys, types  # subprocess finds out by msvcrt what system this is
import fcntl as unix

class Locking(types.ModuleType):
    LK_NBLCK = 2

    def locking(self, descriptor, mode, size):
        assert (mode, size) == (self.LK_NBLCK, 1)
        try:
            unix.flock(descriptor, unix.LOCK_EX | unix.LOCK_NB)
        except OSError:
            raise PermissionError(13, "Permission denied") from None

sys.modules["msvcrt"] = Locking("msvcrt")
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
signal.Signals = enum.IntEnum("Signals", {s.name: int(s) for s in signal.Signals if s.name != "SIGHUP"})
del signal.SIGHUP

from metarun.cli import main
from metarun.locks import fcntl
assert fcntl is None
for words in sys.argv[1:]:
    assert main(words.split()) == 0, words
assert "torch._dynamo" not in sys.modules
"""


def test_a_run_is_trained_and_reported_without_the_modules_of_posix_and_the_compiler(tmp_path: Path) -> None:
    """Importing the compiler would take half of the time before the first step."""
    run = (
        "task=regression/sinusoid algorithm=imaml model.hidden=[4,4] name=x runner.iterations=2 "
        "runner.validate_every=1 runner.val_episodes=2 runner.test_episodes=2 runner.meta_batch=2"
    )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, run, "report outputs out=page"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page" / "report.html").is_file()


def test_a_lock_is_exclusive_until_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    script = (
        "import sys, time\nfrom metarun.locks import lock\n"
        "file = open(sys.argv[1], 'ab'); lock(file); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with path.open("ab") as file, path.open("rb") as other:
        assert not try_lock(file)
        assert not try_lock(other, shared=True)
        holder.kill()
        holder.wait()
        lock(file)
        assert not try_lock(other, shared=True)
    holder.stdout.close()
    with path.open("rb") as file, path.open("rb") as other:
        assert try_lock(file, shared=True)
        assert try_lock(other, shared=True)


def test_without_fcntl_waiting_for_a_lock_ends_when_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "try_lock", lambda file: next(answers))
    monkeypatch.setattr(locks, "POLL", 0.0)
    with (tmp_path / "lock").open("ab") as file:
        lock(file)
    assert list(answers) == []


def test_hydra_s_help_object_passes_the_check_that_python_3_14_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra._internal.utils import get_args_parser

    if sys.version_info < (3, 14):
        add = argparse.ArgumentParser.add_argument

        def check(self: Any, action: argparse.Action) -> None:
            if not isinstance(action.help, str | None):
                raise ValueError("badly formed help string")

        def add_argument(self: Any, *words: Any, **keys: Any) -> argparse.Action:
            action = add(self, *words, **keys)
            self._check_help(action)
            return action

        monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
        monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)
        monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    before = argparse.ArgumentParser._check_help  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="badly formed help string"):
        get_args_parser()
    with _any_help():
        get_args_parser()
    assert argparse.ArgumentParser._check_help is before  # type: ignore[attr-defined]
