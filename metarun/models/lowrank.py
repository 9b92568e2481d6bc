"""A layer with a low-rank addition to its weight (LoRA)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Added(nn.Module):
    """``layer`` with B A added to its weight, as two thin layers beside it: y = layer(x) + up(down(x)).

    B, of ``up``, starts at 0. A convolution's A is a convolution to r channels with its kernel, stride and padding,
    and B one over single places; each group of a grouped one has a B and an A of its own.
    """

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = thin(layer, rank)
        nn.init.zeros_(self.up.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def add(net: nn.Module, rank: int) -> dict[str, Added]:
    """Put :class:`Added` in place of every linear and convolution layer of ``net``; by name.

    Not of subclasses, which may use their weight in ways of their own; a layer used in two places counts twice.
    """
    layers = {n: m for n, m in net.named_modules(remove_duplicate=False) if type(m) in LAYERS}
    added = {name: Added(layer, rank) for name, layer in layers.items()}
    for name, layer in added.items():
        net.set_submodule(name, layer)
    return added


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


def fix(module: nn.Module, persistent: bool = True) -> None:
    """Make all parameters buffers: used as before, but nothing to learn; not ``persistent``: nor to store."""
    fixed: dict[int, Tensor] = {}  # one tensor in two places stays one
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            delattr(part, name)
            part.register_buffer(name, fixed.setdefault(id(parameter), parameter.detach()), persistent=persistent)
