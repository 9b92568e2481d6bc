"""Provenance of a result: code version, command, package versions, host."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metarun.errors import conceal


def provenance() -> dict[str, Any]:
    """Return the facts that make a result traceable: code version, command, package versions, host."""
    versions = {}
    for package in ("metarun", "torch", "numpy", "hydra-core", "omegaconf", "wandb"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "argv": [conceal(word) for word in sys.argv],
        "directory": os.getcwd(),
        "git": _git_state(),
        "python": platform.python_version(),
        "versions": versions,
        "host": {"system": platform.platform(), "cpu": _cpu_name(), "cores": os.cpu_count()},
    }


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the running code, and whether code or configuration differ from it; ``None`` without a
    checkout.
    """
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists() or not shutil.which("git"):
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
        ).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(
            git("status", "--porcelain", "--", "metarun", "conf", "pyproject.toml", "scripts/constraints.txt")
        ),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
