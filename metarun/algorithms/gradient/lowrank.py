"""Low-rank additions to a network's weights as what adapts."""

from __future__ import annotations

from torch import nn

from metarun.algorithms.gradient.pieces import AdaptedParameters
from metarun.models.lowrank import add, fix
from metarun.tasks.episode import Spec
from metarun.types import Positive


class LowRank(AdaptedParameters):
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
        layers = add(net, self.rank)
        for layer in layers.values():
            for fixed in (layer.up,) if self.learned else (layer.up, layer.down):
                fix(fixed)
        return [f"{name}.{part}.weight" for name in layers for part in ("down", "up")]

    def extra_repr(self) -> str:
        return f"rank={self.rank}, learned={self.learned}"
