"""Low-rank adaptation of layers (LoRA; Hu et al. 2022, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRankLayer(nn.Module):
    """A layer with a low-rank update B A of its weight: y = layer(x) + up(down(x)).

    B, the weight of ``up``, starts at 0. For a convolution, A is a convolution to ``rank`` channels with the same
    kernel, stride and padding, and B is a 1x1 convolution. Each group of a grouped convolution has its own A and B.

    Args:
        layer: Linear or convolution layer.
        rank: Rank of the update, per group.
    """

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = low_rank_pair(layer, rank)
        nn.init.zeros_(self.up.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))

    @property
    def weight(self) -> Tensor:
        """The weight with its update, for networks that read it."""
        parts: tuple[Any, ...] = (self.layer, self.up, self.down)
        weight, up, down = (part.weight for part in parts)
        groups = getattr(self.layer, "groups", 1)
        update = up.view(groups, len(up) // groups, -1) @ down.view(groups, len(down) // groups, -1)
        return weight + update.view_as(weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        return self.layer.bias  # type: ignore[return-value]


def add(net: nn.Module, rank: int) -> dict[str, LowRankLayer]:
    """Replace all linear and convolution layers of a network by :class:`LowRankLayer`, in place.

    Subclasses of these layers are not replaced, since they may use their weight differently. A layer that is used under
    two names is replaced twice.

    Args:
        net: Network to change in place.
        rank: Rank of the updates.

    Returns:
        The new layers by name.
    """
    layers = {n: m for n, m in net.named_modules(remove_duplicate=False) if type(m) in LAYERS}
    added = {name: LowRankLayer(layer, rank) for name, layer in layers.items()}
    for name, layer in added.items():
        net.set_submodule(name, layer)
    return added


def low_rank_pair(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    """Return layers without bias from the inputs of ``layer`` to ``rank`` channels per group, and to its outputs."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
    kind, groups = type(layer), layer.groups
    same = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    return (
        kind(layer.in_channels, rank * groups, layer.kernel_size, bias=False, **same),
        kind(rank * groups, layer.out_channels, 1, groups=groups, bias=False),
    )


def fix(module: nn.Module, persistent: bool = True, keep: Callable[[nn.Module], bool] = lambda layer: False) -> None:
    """Turn parameters of a module into buffers, so that they are used but not trained.

    Args:
        module: Module to change in place.
        persistent: If false, the buffers are not stored in checkpoints.
        keep: Function that returns true for layers whose own parameters stay trainable.
    """
    fixed: dict[int, Tensor] = {}  # a shared tensor stays shared
    for part in module.modules():
        if keep(part):
            continue
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            delattr(part, name)
            part.register_buffer(name, fixed.setdefault(id(parameter), parameter.detach()), persistent=persistent)
