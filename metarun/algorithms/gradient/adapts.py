"""What adapts to a task: the first of the gradient engine's four pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from metarun.algorithms.gradient.parameters import Parameters
from metarun.errors import require
from metarun.models.norm import BatchNorm
from metarun.tasks.base import Labelled

if TYPE_CHECKING:
    from metarun.algorithms.gradient.learner import GradientLearner

NORMS = (BatchNorm, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Adapts(nn.Module):
    """Chooses, or adds, the parameters that adapt, and says where they start.

    A subclass gives :meth:`attach`; :meth:`initial` only where the start depends on the task.
    """

    def attach(self, net: nn.Sequential) -> list[str]:
        """Names in ``net`` (the model, then its head) of what adapts; whatever they need may be added to it."""
        raise NotImplementedError

    def initial(self, learner: GradientLearner, support: Labelled) -> tuple[Parameters, Any]:
        """Where adaptation starts, and the dimension of tasks: ``None`` (shared), 0, or a dictionary of both."""
        named = dict(learner.net.named_parameters()) | dict(learner.net.named_buffers())
        return {name: named[name] for name in learner.adapted_names}, None


class Part(Adapts):
    """A part of the network, from its meta-learned values; the rest stays as meta-learned.

    ``all``; only the ``head`` (ANIL: Raghu et al. 2020, arXiv:1909.09157); only the ``body`` (BOIL: Oh et al.
    2021, arXiv:2008.08882); or only normalisation's factors and offsets (``norm``). These are otherwise left
    out unless ``norm``: in MAML's own code they do not adapt.
    """

    def __init__(self, *, part: Literal["all", "head", "body", "norm"], norm: bool) -> None:
        super().__init__()
        self.part, self.norm = part, norm or part == "norm"

    def attach(self, net: nn.Sequential) -> list[str]:
        affine = {
            f"{module}.{name}"
            for module, layer in net.named_modules()
            if isinstance(layer, NORMS)
            for name, _ in layer.named_parameters(recurse=False)
        }
        names = {name for name, _ in net.named_parameters()}
        head = {f"{len(net) - 1}.{name}" for name, _ in net[-1].named_parameters()}
        chosen = {"all": names, "head": head, "body": names - head, "norm": affine}[self.part]
        if not self.norm:
            chosen = chosen - affine
        require(bool(chosen), f"algorithm.adapts.part={self.part}: this model has no parameters there to adapt")
        return [name for name, _ in net.named_parameters() if name in chosen]

    def extra_repr(self) -> str:
        return f"part={self.part}, norm={self.norm}"
