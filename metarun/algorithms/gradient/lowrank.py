"""Adaptation of low-rank additions to a network's weights (LoRA)."""

from __future__ import annotations

from torch import nn

from metarun.algorithms.gradient.pieces import AdaptedParameters
from metarun.models.lowrank import add, fix
from metarun.tasks.episode import Spec
from metarun.types import Positive


class LowRank(AdaptedParameters):
    """Every linear and convolution weight W, the head's too, becomes W + B A; only B and A adapt.

    LoRA (Hu et al. 2022, arXiv:2106.09685, section 4.1), whose scaling is left to ``algorithm.inner_lr``. B [outputs,
    r] starts at 0, so that adaptation starts at the meta-learned network. A [r, inputs x kernel] is initialised as a
    layer of its shape. W and all other parameters are meta-learned and shared by all tasks.

    Args:
        rank: The rank r of B A.
        learned: True if the initial value of A is meta-learned; false if it stays at its random initialisation.
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
