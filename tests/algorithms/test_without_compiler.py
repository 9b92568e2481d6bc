"""Derivatives without torch's compiler. That none imports it is asserted in tests/test_platforms.py."""

from contextlib import nullcontext
from importlib import import_module

import pytest
import torch

from metarun.algorithms.functional import without_compiler


def test_the_compiler_is_itself_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(torch), "_dynamo", raising=False)
    with without_compiler():
        assert torch._dynamo.compiled_autograd._disable is nullcontext
        with without_compiler():
            assert torch._dynamo.compiled_autograd._disable is nullcontext
        assert torch._dynamo.config is import_module("torch._dynamo").config
    assert torch._dynamo is import_module("torch._dynamo")
    monkeypatch.setattr(torch, "_dynamo", imported := import_module("torch._dynamo"), raising=False)
    with without_compiler():
        assert torch._dynamo is imported
