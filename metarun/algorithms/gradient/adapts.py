"""Choices of the parameters that adapt: a subset of the network, an added context, or a head from prototypes."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.algorithms.functional import call_with
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import AdaptedParameters
from metarun.algorithms.metric.protonet import prototypes
from metarun.algorithms.supervised import dry_run
from metarun.errors import nearest, require
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import Labelled, Spec
from metarun.types import Positive

NORMS = (BatchNorm, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class ParameterSubset(AdaptedParameters):
    """A subset of the network's parameters adapts from meta-learned values. The others keep theirs.

    ``part`` is ``all``, the ``head`` (ANIL: Raghu et al. 2020, arXiv:1909.09157), the ``body`` (BOIL: Oh et al. 2021,
    arXiv:2008.08882), or ``norm``, the scales and offsets of normalisation layers. In the other subsets these adapt
    only if the argument ``norm`` is true; in MAML's own code they do not.
    """

    def __init__(self, *, part: Literal["all", "head", "body", "norm"], norm: bool) -> None:
        super().__init__()
        self.part, self.norm = part, norm or part == "norm"

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        names = {name for name, _ in net.named_parameters()}
        head = {f"{len(net) - 1}.{name}" for name, _ in net[-1].named_parameters()}
        chosen = {"all": names, "head": head, "body": names - head, "norm": affine(net)}[self.part]
        if not self.norm:
            chosen = chosen - affine(net)
        require(bool(chosen), f"algorithm.adapts.part={self.part}: this model has no parameters there to adapt")
        return [name for name, _ in net.named_parameters() if name in chosen]

    def extra_repr(self) -> str:
        return f"part={self.part}, norm={self.norm}"


def affine(net: nn.Module) -> set[str]:
    """Return the names of the scales and offsets of normalisation layers."""
    return {
        f"{module}.{name}"
        for module, layer in net.named_modules()
        if isinstance(layer, NORMS)
        for name, _ in layer.named_parameters(recurse=False)
    }


class Context(AdaptedParameters):
    """A context c of ``size`` parameters adapts from 0. The network and its use of the context are meta-learned.

    CAVIA (Zintgraf et al. 2019, arXiv:1810.03642, equations 2-4). The context modulates the output y of the model's
    ``layer`` (a dotted name; null: the features before the head) channel by channel. It is y + B c, which at the first
    linear layer equals concatenating c to the input, or with ``scale`` y (1 + A c) + B c (FiLM, the paper's choice for
    images). A shift before batch normalisation has no effect: name the normalisation layer itself.
    """

    def __init__(self, *, size: Positive, layer: str | None, scale: bool) -> None:
        super().__init__()
        self.size, self.layer, self.scale = size, layer, scale

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        name = self.layer or ""
        layer = layer_named(name, net[0], "algorithm.adapts.layer")
        film = FiLM(self.size, output_shape(layer, net[0], spec)[1], self.scale)
        if not name:
            net.insert(1, film)
            return ["1.context"]
        net.set_submodule(f"0.{name}", nn.Sequential(layer, film))
        return [f"0.{name}.1.context"]

    def extra_repr(self) -> str:
        return f"size={self.size}, layer={self.layer}, scale={self.scale}"


def layer_named(name: str, model: nn.Module, key: str) -> nn.Module:
    """Return the layer of a dotted name; raises :class:`UserError`, which names the configuration's ``key``."""
    layers = dict(model.named_modules())
    require(
        name in layers,
        f"{key}={name}: the model has no such layer{nearest(name, layers)}"
        f"   its layers: {', '.join(filter(None, layers))}",
    )
    return layers[name]


def output_shape(layer: nn.Module, model: nn.Module, spec: Spec) -> torch.Size:
    """Return the shape of the output of ``layer`` when ``model`` is run on two examples."""
    shapes: list[torch.Size] = []
    with layer.register_forward_hook(lambda module, inputs, y: shapes.append(y.shape)):
        dry_run(model, spec)
    return shapes[0]


class FiLM(nn.Module):
    """Map y [N, channels, ...] to y + B c, or to y (1 + A c) + B c, with the ``context`` c [size]."""

    context: Tensor

    def __init__(self, size: int, channels: int, scale: bool) -> None:
        super().__init__()
        self.register_buffer("context", torch.zeros(size))
        self.shift = nn.Linear(size, channels, bias=False)
        self.scale = nn.Linear(size, channels, bias=False) if scale else None

    def forward(self, y: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (y.dim() - 2)
        if self.scale is not None:
            y = y * (1 + self.scale(self.context).view(shape))
        return y + self.shift(self.context).view(shape)


class Prototypes(ParameterSubset):
    """All parameters adapt, with a head made from class means c_k of the support set: weights 2 c_k, biases -|c_k|^2.

    Proto-MAML (Triantafillou et al. 2020, arXiv:1903.03096, section 3.1). Before the first step the learner is a
    prototypical network. The outer gradient also flows through the c_k. The head has no meta-parameters.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    any_way = True

    def __init__(self, *, norm: bool) -> None:
        super().__init__(part="all", norm=norm)

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        require(net[-1].bias is not None, "algorithm.adapts: prototypes need a head with offsets; model.bias=true")
        net[-1].requires_grad_(False)
        return super().attach(net, spec)

    def initial(self, learner: InnerLoopLearner, support: Labelled) -> tuple[Parameters, Any]:
        shared = learner.meta_learned()
        embed = partial(call_with, learner.adapts.overrides_at(0), learner.net[:-1])
        features = learner.map_tasks(embed, (0,), support.x)
        centres = prototypes(features, support.y, support.way)
        head = {"1.weight": 2 * centres, "1.bias": -centres.square().sum(-1)}
        return shared | head, {name: 0 if name in head else None for name in shared}

    def extra_repr(self) -> str:
        return f"norm={self.norm}"
