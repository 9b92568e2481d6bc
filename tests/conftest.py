"""What every test shares: one thread, no W&B unless asked, real data where METARUN_DATA names it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads make small operations slower, far slower on a busy machine. Torch reads this when it is imported, which
# fixtures do themselves: the process that hands tests to workers needs no torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Collect garbage less often, and not in what stays: modules and tests are 800,000 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in its own empty directory, one-threaded, in float32, with W&B off unless it says otherwise."""
    import torch

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("METARUN_CONF", raising=False)
    yield
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """``metarun adapt`` draws nothing; tests/cli/test_adapt.py and tests/test_life.py look at its pictures."""
    monkeypatch.setattr("metarun.cli.adapt.draw", lambda *_: None)


@pytest.fixture
def float64() -> None:
    """For exact comparisons: float64 is the default, until the test ends; random numbers are those of seed 0."""
    import torch

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


@pytest.fixture
def data_root() -> Path:
    """The folder of real data; the test is skipped where METARUN_DATA names none."""
    root = os.environ.get("METARUN_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("METARUN_DATA names no folder of real data")
    return Path(root).resolve()
