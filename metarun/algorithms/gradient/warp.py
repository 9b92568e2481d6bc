"""Warp layers: meta-learned layers between the adapted ones, which precondition the gradients of earlier layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from metarun.algorithms.gradient.adapts import ParameterSubset, layer_named, output_shape
from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.types import Positive

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Warped(ParameterSubset):
    """All parameters of the model and head adapt, except the warp layers inserted between them.

    WarpGrad (Flennerhag et al. 2020, arXiv:1909.00025, sections 2.2 and 2.3): a task layer h with weights theta
    becomes w(h(x; theta)). Adaptation changes theta only. Its gradient passes through the Jacobian of the warp layer
    w, which thereby preconditions it. Warp layers are shared by all tasks, linear, and initialised as the identity, so
    that meta-training starts as MAML.

    The outer gradient decides how w is trained. Unrolled (``algorithm=warpgrad``) trains w and the initialisation on
    the query loss after the last step, backpropagated through the inner loop: MAML's objective with w among its
    parameters. Stepwise (``algorithm=warpgrad_steps``) is the paper's objective (section 2.4), a sum over the points
    of the inner loop without backpropagation through it. With one inner step both are the same.

    Args:
        after: Dotted names of the layers of the model that a warp layer follows. The authors insert convolutions with
            batch normalisation after each block. ``None``: every linear and convolution layer except the head.
        kernel: Width of the convolutions, an odd number. With 1 they mix channels only.
        norm: True if normalisation parameters adapt too.
    """

    def __init__(self, *, after: Sequence[str] | None, kernel: Positive, norm: bool) -> None:
        super().__init__(part="all", norm=norm)
        self.after, self.kernel = after, kernel

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        require(self.kernel % 2 == 1, f"algorithm.adapts.kernel={self.kernel} has no middle; give an odd number")
        names = self.after
        if names is None:
            names = [n for n, m in net[0].named_modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS))]
        require(bool(names), "algorithm.adapts.after: this model has no layer to warp, linear or convolution")
        require(all(names), "algorithm.adapts.after: give layers of the model, not the model")
        layers = {name: layer_named(name, net[0], "algorithm.adapts.after") for name in names}
        warps = {name: identity(name, m, output_shape(m, net[0], spec), self.kernel) for name, m in layers.items()}
        # Inner layers first: a replaced outer one would change their names.
        for name in sorted(layers, key=lambda name: name.count("."), reverse=True):
            net.set_submodule(f"0.{name}", nn.Sequential(layers[name], warps[name]))
        inserted = {f"{name}.weight" for name, m in net.named_modules() if any(m is w for w in warps.values())}
        return [name for name in super().attach(net, spec) if name not in inserted]

    def extra_repr(self) -> str:
        return f"after={self.after}, kernel={self.kernel}, norm={self.norm}"


def identity(name: str, layer: nn.Module, shape: torch.Size, kernel: int) -> nn.Module:
    """Return a linear layer from the output ``shape`` of ``layer`` to the same shape, initialised as the identity."""
    if isinstance(layer, nn.Linear) or len(shape) == 2:
        linear = nn.Linear(shape[-1], shape[-1], bias=False)
        nn.init.eye_(linear.weight)
        return linear
    require(
        3 <= len(shape) <= 5,
        f"algorithm.adapts.after={name}: it makes {len(shape)} dimensions; a warp layer follows 2 to 5: examples, "
        "channels, and 0 to 3 of places",
    )
    channels = shape[1]
    convolution = CONVOLUTIONS[len(shape) - 3](channels, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.dirac_(convolution.weight)
    return convolution
