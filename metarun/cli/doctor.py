"""``metarun doctor``: check the installation, devices and optional packages."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from metarun.cli.arguments import Arguments, refuse_words
from metarun.cli.output import print_json
from metarun.config.paths import conf_directory
from metarun.escape import printable

_EXTRAS = {
    "nlp": "transformers",
    "parquet": "pyarrow",
    "rl": "mujoco",
    "games": "minigrid",
    "rl-metaworld": "metaworld",
    "procgen": "procgen",
    "search": "optuna",
    "tabular": "sklearn",
    "vision": "timm",
    "export": "onnxruntime",
    "tensorboard": "tensorboard",
    "slurm": "submitit",
    "ray": "ray",
}


def run(arguments: Arguments) -> int:
    """Run the command; return exit status 1 if something that every run needs is broken."""
    refuse_words(arguments)
    findings = []
    for name, finding, good in _findings():
        findings.append({"name": name, "finding": finding, "ok": good})
        if not arguments["--json"]:
            print(printable(f"{'ok  ' if good else 'BAD ' if good is False else '    '} {name:<12} {finding}"))
    healthy = all(finding["ok"] is not False for finding in findings)
    if arguments["--json"]:
        print_json({"healthy": healthy, "findings": findings})
    return 0 if healthy else 1


def _findings() -> Iterator[tuple[str, str, bool | None]]:
    """Yield (name, finding, is_good); ``is_good`` is ``None`` for optional parts."""
    yield "python", f"{platform.python_version()} ({sys.executable})", True
    for package in ("torch", "hydra-core", "omegaconf", "wandb", "numpy"):
        try:
            yield package, version(package), True
        except PackageNotFoundError:
            yield package, "not installed", False
    import torch

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "cuda", ", ".join(cuda) if cuda else "no device", True if cuda else None
    yield "mps", "available" if torch.backends.mps.is_available() else "no device", None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cpu", f"{cores} cores usable", True
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    yield "compiler", compiler or "none; metarun works without one", None
    yield "conf", str(conf_directory()), True
    data = os.environ.get("METARUN_DATA")
    if data:
        yield (
            "data",
            f"METARUN_DATA={data}" + ("" if Path(data).is_dir() else " is not a directory"),
            Path(data).is_dir(),
        )
    else:
        yield (
            "data",
            "METARUN_DATA is not set; data sets are downloaded to the cache, or read from task.root",
            None,
        )
    from metarun.tasks.cache import cache_root, entries, shown_size

    size = sum(entry.size for entry in entries())
    yield "cache", f"{cache_root()}, {shown_size(size)} (metarun cache lists it)", _writable(cache_root())
    yield "outputs", "outputs", _writable(Path("outputs"))
    yield "wandb mode", _wandb_mode(), None
    for extra, module in _EXTRAS.items():
        installed = importlib.util.find_spec(module) is not None
        yield f"extra {extra}", module if installed else f"not installed: pip install 'metarun[{extra}]'", None


def _writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _wandb_mode() -> str:
    from metarun.tracking.sinks.wandb_mode import requested_mode

    requested = requested_mode(None, os.environ)
    return f"{requested} (WANDB_MODE)" if requested else "online with an API key, else offline"
