"""An outer step stays short enough to be read: the functions that it enters, by scripts/hops.py."""

import re
import sys

import pytest

from tests.script import script


def test_an_outer_step_of_maml_is_short(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["hops.py", "task=regression/sinusoid", "algorithm=maml"])
    script("hops").main()
    printed = capsys.readouterr().out
    counts = re.findall(r"^(.+) step: (\d+) functions in (\d+) files$", printed, re.MULTILINE)
    assert [name for name, *_ in counts] == ["plain", "the engine's"]
    assert "InnerLoopLearner.inner_gradient" in printed
    assert "Adam.step" in printed
    assert all(int(functions) <= 34 and int(files) <= 9 for _, functions, files in counts), printed
