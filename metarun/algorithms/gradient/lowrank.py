"""Low-rank additions to a network's weights as what adapts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metarun.algorithms.gradient.adapts import Adapts
from metarun.tasks.base import Spec
from metarun.types import Positive

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank(Adapts):
    """Every linear and convolution weight W, the head's too, becomes W + B A of ``rank`` r; only B and A adapt.

    LoRA (Hu et al. 2022, arXiv:2106.09685, section 4.1) with its scaling left to ``algorithm.inner_lr``: B
    [outputs, r] starts at 0, so that the network starts as its meta-learned self; A [r, inputs x places] starts
    as a layer of its shape is initialised, and from there is meta-learned if ``learned``, else stays. W and all
    else are meta-learned and the same for all tasks.
    """

    def __init__(self, *, rank: Positive, learned: bool) -> None:
        super().__init__()
        self.rank, self.learned = rank, learned

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        # Not subclasses, which may use their weight in ways of their own; a layer used in two places counts twice.
        layers = {n: m for n, m in net.named_modules(remove_duplicate=False) if type(m) in LAYERS}
        for name, layer in layers.items():
            net.set_submodule(name, Added(layer, self.rank, self.learned))
        return [f"{name}.{part}.weight" for name in layers for part in ("down", "up")]

    def extra_repr(self) -> str:
        return f"rank={self.rank}, learned={self.learned}"


class Added(nn.Module):
    """``layer`` with B A added to its weight, as two thin layers beside it: y = layer(x) + up(down(x)).

    A convolution's A is a convolution to r channels with its kernel, stride and padding, and B one over single
    places; each group of a grouped one has a B and an A of its own.
    """

    def __init__(self, layer: nn.Module, rank: int, learned: bool) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = thin(layer, rank)
        nn.init.zeros_(self.up.get_parameter("weight"))
        for fixed in (self.up,) if learned else (self.up, self.down):
            fix(fixed)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def thin(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    """Layers without bias that lead as ``layer`` does, by way of ``rank`` numbers or channels a group."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
    kind, groups = type(layer), layer.groups
    same = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    return (
        kind(layer.in_channels, rank * groups, layer.kernel_size, bias=False, **same),
        kind(rank * groups, layer.out_channels, 1, groups=groups, bias=False),
    )


def fix(layer: nn.Module) -> None:
    """Make the weight a buffer: where adaptation starts, but nothing to meta-learn."""
    weight = layer.get_parameter("weight").detach()
    del layer.weight
    layer.register_buffer("weight", weight)
