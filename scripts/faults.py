"""Seeded faults: break a copy of the committed code in one place at a time and see whether the tests notice.

The table is tests/faults/*.yaml. Every entry names a file, a text that stands in it exactly once, the faulty text to
put there, and the tests that should fail then. A fault that they miss shows what nobody tests.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = ("torch", "pytest")
"""Modules that are imported once, not by every fault's process: none of them imports metarun."""
HUNG_AFTER = 900.0
"""Seconds after which the tests of a fault are given up, as a guard against faults that never end."""


class OutOfDate(Exception):
    """The table no longer fits the code."""


@dataclass(frozen=True)
class Fault:
    """One deliberate fault."""

    name: str
    what: str
    """What goes wrong, for a reader who does not know the code."""
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Files or node ids, as pytest takes them."""
    family: str
    """The table's file, without its ending."""

    def applied(self, text: str) -> str:
        """``text``, the content of :attr:`file`, with the fault in it; raises :class:`OutOfDate`."""
        count = text.count(self.old)
        if count != 1:
            raise OutOfDate(f"{self.family}.yaml, {self.name}: its old text stands {count} times in {self.file}")
        return text.replace(self.old, self.new)


def table(root: Path) -> list[Fault]:
    """All faults of the checkout ``root``, family by family."""
    found = []
    for path in sorted((root / "tests" / "faults").glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text()):
            found.append(Fault(**{**entry, "tests": tuple(entry["tests"])}, family=path.stem))
    return found


def chosen(faults: Iterable[Fault], patterns: Sequence[str]) -> list[Fault]:
    """Those whose name or family matches one of the ``patterns``; all, if there are none."""
    return [f for f in faults if not patterns or any(fnmatch(f.name, p) or fnmatch(f.family, p) for p in patterns)]


def put(path: Path, text: str) -> None:
    """Write a source file and forget its bytecode, which is known by size and whole seconds alone."""
    path.write_text(text)
    Path(cache_from_source(str(path))).unlink(missing_ok=True)


def run_pytest(root: Path, tests: Sequence[str], log: Path) -> int:
    """Run ``tests`` in this process, in the checkout ``root``; returns pytest's exit status."""
    import pytest

    os.setsid()  # so that whatever the tests start can be ended with them
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(root)
    sys.path.insert(0, str(root))
    status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-rfE", *tests]))
    sys.stdout.flush()
    module = sys.modules.get("metarun")
    own = module is None or Path(str(module.__file__)).is_relative_to(root)
    return status if own else OTHER_CODE


class Bench:
    """A clone in which faults are tried."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.log = folder / "clone", folder / "log"
        subprocess.run(["git", "clone", "--quiet", "--shared", str(root), str(self.root)], check=True)
        os.environ |= {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        sys.dont_write_bytecode = False  # what is compiled for one fault serves all others
        for name in PRELOADED:
            importlib.import_module(name)

    def status(self, tests: Sequence[str], patience: float = HUNG_AFTER) -> int | None:
        """What pytest's exit status is for ``tests``, in a process of their own; ``None`` if they do not end."""
        child = os.fork()
        if child == 0:
            try:
                os._exit(run_pytest(self.root, tests, self.log))
            finally:
                os._exit(OTHER_CODE)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def verdict(self, fault: Fault) -> str:
        """``caught``, ``SURVIVED``, or why neither can be said."""
        path = self.root / fault.file
        text = path.read_text()
        put(path, fault.applied(text))
        try:
            return VERDICTS.get(self.status(fault.tests), "BROKEN: the tests did not run")
        finally:
            put(path, text)

    def noticed_by(self) -> str:
        """The first test that failed in the last run."""
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", self.log.read_text(errors="replace"), re.MULTILINE)
        return found[1] if found else ""


OTHER_CODE = 99
"""Exit status of tests that met another metarun than the clone's."""
VERDICTS = {0: "SURVIVED", 1: "caught", None: f"BROKEN: no end within {HUNG_AFTER:g} s"}


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a fault or a family; * matches")
    parser.add_argument("--list", action="store_true", help="print the faults and run nothing")
    options = parser.parse_args(arguments)
    faults = chosen(table(root), options.only)
    if not faults:
        print(f"no such fault: {', '.join(options.only)}; --list prints all", file=sys.stderr)
        return 2
    if options.list:
        for fault in faults:
            print(f"{fault.family}/{fault.name}: {fault.what}  ({fault.file})")
        return 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            bench = Bench(root, Path(folder))
            for fault in faults:
                fault.applied((bench.root / fault.file).read_text())
        except OutOfDate as error:
            print(f"{error}; mend the table", file=sys.stderr)
            return 2
        print(f"{len(faults)} faults; first their tests without any", flush=True)
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        if bench.status(tests, HUNG_AFTER * len(faults)) != 0:
            print(bench.log.read_text(errors="replace")[-2000:], file=sys.stderr)
            print("the tests do not pass on the code as it is, or do not run; mend that first", file=sys.stderr)
            return 2
        return report(bench, faults)


def report(bench: Bench, faults: Sequence[Fault]) -> int:
    """Try each fault; print what became of it, and then of all. 1 if one was not caught."""
    missed = []
    for fault in faults:
        start = time.monotonic()
        verdict = bench.verdict(fault)
        by: Any = bench.noticed_by() if verdict == "caught" else fault.what
        print(f"{verdict:8}  {fault.family}/{fault.name}  {time.monotonic() - start:.0f} s  {by}", flush=True)
        if verdict != "caught":
            missed.append(fault)
    caught = len(faults) - len(missed)
    print(f"\n{caught} of {len(faults)} faults caught ({100 * caught / len(faults):.1f} %)")
    for fault in missed:
        print(f"  not caught: {fault.family}/{fault.name}: {fault.what}  ({fault.file}; {' '.join(fault.tests)})")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
