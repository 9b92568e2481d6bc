"""Adam on one vector of all parameters takes the steps of torch's Adam, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from metarun.algorithms.outer_optimizer import Adam

SHAPES = [(40, 1), (7,), (4, 6, 3, 3), (1,), (13, 5)]


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    noise = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.randn(shape, generator=noise, dtype=dtype)) for shape in SHAPES]
    return [*found, nn.Parameter(torch.randn(5, 4, generator=noise, dtype=dtype).t())]


def set_gradients(chosen: list[nn.Parameter], step: int) -> None:
    """Set gradients of other memory layouts than the parameters'; one parameter has none in every third step."""
    noise = torch.Generator().manual_seed(step)
    for number, p in enumerate(chosen):
        gradient = torch.randn(*p.shape, generator=noise, dtype=p.dtype)
        if gradient.dim() > 1:
            gradient = gradient.transpose(0, 1).contiguous().transpose(0, 1)
        p.grad = None if number == 1 and step % 3 == 2 else gradient


def equal(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_torchs_adam_to_the_bit(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    adam, reference = Adam(ours, lr=0.01, eps=1e-5), torch.optim.Adam(theirs, lr=0.01, eps=1e-5, foreach=False)
    for step in range(20):
        for optimizer, chosen in ((adam, ours), (reference, theirs)):
            set_gradients(chosen, step)
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            optimizer.step()
    assert equal(ours, theirs)
    for p, q in zip(ours, theirs, strict=True):
        state, expected = adam.state[p], reference.state[q]
        assert all(torch.equal(state[name], expected[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_a_state_of_torchs_adam_continues_and_copies_are_independent() -> None:
    theirs = parameters(torch.float32)
    reference = torch.optim.Adam(theirs, lr=0.01)

    def take(optimizer: torch.optim.Optimizer, chosen: list[nn.Parameter], steps: range) -> list[nn.Parameter]:
        for step in steps:
            set_gradients(chosen, step)
            optimizer.step()
        return chosen

    take(reference, theirs, range(5))
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    adam = Adam(ours, lr=0.01)
    adam.load_state_dict(copy.deepcopy(reference.state_dict()))
    copied: tuple[Adam, list[nn.Parameter]] = copy.deepcopy((adam, ours))
    expected = take(reference, theirs, range(5, 10))
    assert equal(take(adam, ours, range(5, 10)), expected)
    assert equal(take(*copied, range(5, 10)), expected)

    kept: list[Tensor] = [p.detach().clone() for p in ours]
    again = Adam([nn.Parameter(p) for p in kept], lr=0.01)
    again.load_state_dict(adam.state_dict())
    assert equal(take(again, again.param_groups[0]["params"], range(10, 15)), take(reference, theirs, range(10, 15)))


def test_hooks_are_called_once_a_step() -> None:
    chosen = parameters(torch.float32)
    adam, calls = Adam(chosen, lr=0.1), []
    adam.register_step_pre_hook(lambda *_: calls.append("before"))
    adam.register_step_post_hook(lambda *_: calls.append("after"))
    for step in range(2):
        set_gradients(chosen, step)
        adam.step()
    assert calls == ["before", "after"] * 2


def test_a_step_takes_few_operations_however_many_parameters_there_are() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.calls += not func.is_view
            return func(*args, **(kwargs or {}))

    def calls(number: int) -> int:
        chosen = [nn.Parameter(torch.ones(3)) for _ in range(number)]
        adam = Adam(chosen, lr=0.1)
        for _ in range(2):
            for p in chosen:
                p.grad = torch.ones(3)
            with Count() as count:
                adam.step()
        return count.calls

    assert calls(40) == calls(2)
