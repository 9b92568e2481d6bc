"""The task-batched operations against plain ones, one task after another, to the third derivative, in float64.

torch's own normalisation is no measure here: its third derivative is wrong even without ``vmap`` (a test shows it).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metarun.kernels.conv import Col2Im, Geometry, Im2Col
from metarun.kernels.mode import REPLACED, TaskBatched
from metarun.kernels.shared import add_to_shared

TASKS, BATCH = 3, 4


pytestmark = pytest.mark.usefixtures("float64")


def conv(x: Tensor, w: Tensor, *, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, w, stride=stride, padding=padding)


def batch_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, w, 2 * w, True)


def running_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.batch_norm(x, torch.ones(x.shape[1]), torch.full((x.shape[1],), 2.0), w, w, False)


def layer_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.layer_norm(x, [x.shape[-1]], w, w)


def group_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.group_norm(x, 2, w, w)


def relu(x: Tensor, w: Tensor) -> Tensor:
    images = (x * w).movedim(1, -1).contiguous().movedim(-1, 1)
    return torch.relu(images) + 2 * F.relu(-images)


def max_pool(x: Tensor, w: Tensor) -> Tensor:
    return F.max_pool2d(x * w, 2)


def overlapping_pool(x: Tensor, w: Tensor) -> Tensor:
    return F.max_pool2d(x * w, 3, stride=2, padding=1)


def written_out(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    """The same in elementary operations."""
    dims = {"batch_norm": [d for d in range(x.dim()) if d != 1], "layer_norm": [-1]}.get(getattr(f, "__name__", ""))
    if dims is None:
        return f(x, w)
    mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    scale = w if dims == [-1] else w.view(-1, *[1] * (x.dim() - 2))
    return (x - mean) / (var + 1e-5).sqrt() * scale + (scale if dims == [-1] else 2 * scale)


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "conv, stride 1": (partial(conv, stride=1, padding=1), (BATCH, 2, 5, 6), (3, 2, 3, 3)),
    "conv, stride 2": (partial(conv, stride=2, padding=1), (BATCH, 2, 6, 5), (3, 2, 3, 3)),
    "conv, stride 3, no padding": (partial(conv, stride=3, padding=0), (BATCH, 2, 8, 7), (3, 2, 2, 2)),
    "conv, one pixel": (partial(conv, stride=1, padding=0), (BATCH, 1, 3, 3), (2, 1, 1, 1)),
    "rectified channels-last images": (relu, (BATCH, 3, 2, 4), (1,)),
    "maximum pooling": (max_pool, (BATCH, 2, 4, 5), (1,)),
    "overlapping maximum pooling": (overlapping_pool, (BATCH, 2, 5, 5), (1,)),
    "batch norm of images": (batch_norm, (BATCH, 3, 2, 2), (3,)),
    "batch norm of vectors": (batch_norm, (BATCH, 3), (3,)),
    "batch norm by running statistics": (running_norm, (BATCH, 3, 2), (3,)),
    "layer norm": (layer_norm, (BATCH, 5), (5,)),
    "group norm": (group_norm, (BATCH, 4, 2, 2), (4,)),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_three_derivatives_equal_torchs_own_of_one_task_after_another(case: str, shared: bool) -> None:
    """A number made of f, its gradient and a product with its Hessian, and the outer gradient of that number."""
    f, shape, weights = CASES[case]
    x = torch.randn(TASKS, *shape, requires_grad=True)
    w = torch.randn(*(() if shared else (TASKS,)), *weights, requires_grad=True)

    def outer(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
        def inner(x: Tensor, w: Tensor) -> Tensor:
            return f(x, w).sin().square().sum()

        gx, gw = grad(inner, (0, 1))(x, w)
        hx, hw = grad(lambda x, w: sum((g.tanh() ** 2).sum() for g in grad(inner, (0, 1))(x, w)), (0, 1))(x, w)
        return inner(x, w) + gx.sin().sum() + (gw**2).sum() + hx.cos().sum() + hw.sin().sum()

    with TaskBatched():
        batched = vmap(partial(outer, f), in_dims=(0, None if shared else 0))(x, w)
    plain = torch.stack([outer(partial(written_out, f), x[t], w if shared else w[t]) for t in range(TASKS)])
    assert torch.allclose(batched, plain, rtol=1e-10)
    cotangent = torch.randn(TASKS)
    for got, expected in zip(
        torch.autograd.grad(batched @ cotangent, (x, w)), torch.autograd.grad(plain @ cotangent, (x, w)), strict=True
    ):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_tasks_within_particles(case: str) -> None:
    """One batching inside another: weights that differ by the outer dimension, by the inner one, by both, by none."""
    f, shape, weights = CASES[case]
    x = torch.randn(2, TASKS, *shape)
    for dims in ((None, None), (0, None), (None, 0), (0, 0)):
        w = torch.randn(*(n for n, d in zip((2, TASKS), dims, strict=True) if d is not None), *weights)

        def slope(x: Tensor, w: Tensor) -> Tensor:
            return grad(lambda x, w: f(x, w).sin().sum(), (1,))(x, w)[0]

        with TaskBatched():
            got = vmap(vmap(slope, in_dims=(0, dims[1])), in_dims=(0, dims[0]))(x, w)
        for i in range(2):
            for t in range(TASKS):
                one = w if dims[0] is None else w[i]
                one = one if dims[1] is None else one[t]
                assert torch.allclose(got[i, t], slope(x[i, t], one), rtol=1e-10), dims


def test_every_replaced_operation_is_walked() -> None:
    assert [*REPLACED] == [torch.conv2d, torch.relu, F.relu, F.max_pool2d, F.batch_norm, F.layer_norm, F.group_norm]


def test_torchs_own_third_derivative_of_batch_norm_is_wrong() -> None:
    x, w = torch.randn(BATCH, 3), torch.randn(3)

    def third(f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def first(x: Tensor) -> Tensor:
            return grad(lambda x: f(x, w).sin().sum())(x).sin().sum()

        return grad(lambda x: grad(first)(x).sin().sum())(x)

    exact = third(partial(written_out, batch_norm))
    assert float((third(batch_norm) - exact).norm() / exact.norm()) > 1e-3


def test_gradients_of_rectified_images_have_their_layout_whatever_layout_they_come_in() -> None:
    x = torch.randn(TASKS, BATCH, 5, 3, 2).permute(0, 1, 4, 2, 3).requires_grad_()
    planes = torch.randn(TASKS, BATCH, 2, 5, 3)

    with TaskBatched():
        y = vmap(torch.relu)(x)
        (gradient,) = torch.autograd.grad(y, x, planes.requires_grad_(), create_graph=True)
        (second,) = torch.autograd.grad(gradient, planes, torch.randn(TASKS, BATCH, 2, 5, 3))
    assert gradient.stride() == second.stride() == x.stride()


def test_col2im_is_the_adjoint_of_im2col() -> None:
    for geometry in (Geometry((6, 5), (3, 2), (2, 1), (1, 0)), Geometry((7, 7), (3, 3), (3, 3), (1, 1))):
        x = torch.randn(2, 3, 2, *geometry.size)
        patches = Im2Col.apply(x, geometry)
        v = torch.randn_like(patches)
        assert torch.allclose((patches * v).sum(), (x * Col2Im.apply(v, geometry)).sum())


def test_weights_in_any_layout_give_the_same() -> None:
    x, w = torch.randn(TASKS, BATCH, 3, 6, 6), torch.randn(TASKS, 4, 3, 3, 3)
    with TaskBatched():
        f = vmap(partial(conv, stride=2, padding=1))
        channels_last = w.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        assert torch.allclose(f(x, w), f(x, channels_last))


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 2, 4, 1, 3), (3, 0, 1, 4, 2)], ids=str)
def test_two_derivatives_of_an_addition_to_a_shared_tensor_are_the_plain_ones(order: tuple[int, ...]) -> None:
    """Whatever the order in memory of the gradient that comes in."""
    torch.manual_seed(0)
    shared = torch.randn(2, 3, 4, 5, requires_grad=True)
    sizes = (TASKS, *shared.shape)
    each = torch.randn(sizes, requires_grad=True)
    weight = torch.randn([sizes[d] for d in order]).permute(sorted(range(5), key=order.__getitem__))

    def derivatives(add: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        y = add(shared, each)
        first = torch.autograd.grad((y.sin() * weight).sum(), (shared, each), create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), (shared, each))]

    for ours, plain in zip(derivatives(add_to_shared), derivatives(torch.add), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_other_convolutions_are_left_to_torch() -> None:
    x, w = torch.randn(TASKS, BATCH, 4, 6, 6), torch.randn(TASKS, 4, 2, 3, 3)
    with TaskBatched():
        got = vmap(lambda x, w: F.conv2d(x, w, groups=2, padding="same"))(x, w)
    assert torch.allclose(got, torch.stack([F.conv2d(x[t], w[t], groups=2, padding="same") for t in range(TASKS)]))
