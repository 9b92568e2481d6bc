"""The device of a run, and the memory that its steps may take there."""

import pytest
import torch

from metarun.config.build import construct
from metarun.engine import tuning
from metarun.training.device import device_for
from tests.composed import composed


@pytest.mark.parametrize(("family", "device"), [("rl/half_cheetah_dir", "cpu"), ("rl/bandit", "cuda")])
def test_small_policies_stay_beside_their_simulator(family: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    task = construct(composed(f"task={family}")["task"], seed=0)
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(1000, 1000)
    assert device_for("auto", task, small).type == device
    assert device_for("auto", task, large).type == "cuda"
    assert device_for("cuda", task, small).type == "cuda"


def test_a_gpu_lends_a_share_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10e9, 20e9))
    assert tuning.spare_memory(torch.device("cuda")) == tuning.MEMORY_SHARE * 10e9
    assert tuning.spare_memory(torch.device("cpu")) == tuning.MEMORY
