"""Recordings of the functions that an RL algorithm computes in each of its steps, which it takes itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, register_dataclass, register_pytree_node, tree_flatten, tree_unflatten

from metarun.algorithms.rl.base import with_scalars
from metarun.algorithms.rl.distributions import Categorical, Gaussian
from metarun.engine.capture import RecordedGradient, Recording
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.rollout import Rollout

log = logging.getLogger("metarun")

MAX_RECORDINGS = 32
"""Recordings of an algorithm; further functions, and further shapes of their arguments, are computed unrecorded."""

for each in (Rollout, Categorical, Gaussian):
    register_dataclass(each)


@cache
def register(kind: type[Environment]) -> None:
    """Let recordings take the tensors of environments of this class as arguments, and the rest of them as constants."""

    def parts(env: Environment) -> tuple[list[Tensor], _Constants]:
        held = {name: value for name, value in vars(env).items() if name != "_source"}  # of the generator alone
        tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
        return [*tensors.values()], _Constants({**held, **dict.fromkeys(tensors)}, tuple(tensors))

    def whole(tensors: Iterable[Tensor], constants: _Constants) -> Environment:
        env: Environment = object.__new__(kind)
        vars(env).update(constants.values | dict(zip(constants.tensors, tensors, strict=True)))
        return env

    register_pytree_node(kind, parts, whole)


@dataclass(frozen=True, eq=False)
class _Constants:
    """The attributes of an environment beside its tensors. Equal if numbers and words are, and all else is the same."""

    values: dict[str, Any]
    tensors: tuple[str, ...]

    def _facts(self) -> tuple[Any, ...]:
        plain = (int, float, str, bool, type(None), torch.device)
        return *((n, v if isinstance(v, plain) else id(v)) for n, v in self.values.items()), *self.tensors

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constants) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(self._facts())


class Recorder:
    """Computes functions of an algorithm from recordings, made when they are first called on tensors of some shapes.

    Arguments and results are tensors in nested tuples, lists, dictionaries, rollouts, distributions and deterministic
    environments. Other arguments may be modules, numbers, strings and ``None``, which are constants of the recording. A
    function of anything else is called unrecorded, as is one that cannot be recorded.

    Args:
        module: The algorithm. The functions read its parameters and buffers, and nothing else that changes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.recordings: dict[Any, _Recorded | None] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(*arguments)``, detached."""
        found = self._recorded(function, arguments, gradient=False)
        return function(*arguments) if found is None else found()

    def backward(self, loss: Callable[..., Any], *arguments: Any) -> dict[str, Tensor] | None:
        """Add the gradient of a loss to those of the parameters and return its scalars, the loss as ``""``.

        ``None`` if it cannot be recorded; then nothing was computed.
        """
        found = self._recorded(loss, arguments, gradient=True)
        return None if found is None else found()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the algorithm computes unrecorded: recordings are of one module's tensors."""

    def _recorded(
        self, function: Callable[..., Any], arguments: Sequence[Any], gradient: bool
    ) -> Callable[[], Any] | None:
        """Return the function on its arguments, from a recording; ``None`` if there can be none."""
        for argument in arguments:
            if isinstance(argument, Environment) and argument.is_deterministic:
                register(type(argument))
        leaves, spec = tree_flatten(arguments)
        if not all(isinstance(leaf, (Tensor, nn.Module, int, float, str, type(None))) for leaf in leaves):
            return None
        facts = [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves]
        key = (function, gradient, self.module.training, spec, *facts)
        if key not in self.recordings:
            if len(self.recordings) >= MAX_RECORDINGS:
                return None
            try:
                self.recordings[key] = _Recorded(self.module, function, leaves, spec, gradient)
            except Exception as error:
                name = getattr(function, "__qualname__", function)
                log.warning("%s could not be captured (%s)", name, " ".join(str(error).split())[:200])
                self.recordings[key] = None
        recorded = self.recordings[key]
        return None if recorded is None else partial(recorded, leaves)


class _Recorded:
    """A function of nested tensors, recorded on the tensors alone."""

    def __init__(
        self, module: nn.Module, function: Callable[..., Any], leaves: Sequence[Any], spec: TreeSpec, gradient: bool
    ) -> None:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.results: Any = None

        def called(*given: Tensor) -> Any:
            rest = iter(given)
            return function(*tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], spec))

        def values(*given: Tensor) -> list[Tensor]:
            found, self.results = tree_flatten(called(*given))
            return found

        def loss(*given: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
            value, scalars = with_scalars(called(*given))
            return value, {"": value, **scalars}

        self.run: Callable[..., Any]
        if gradient:
            self.run = RecordedGradient(module, loss, tensors, "graph").add_gradient
        else:
            self.run = Recording(module, values, tensors, "graph")

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """Return the results for the flattened arguments ``leaves``."""
        found = self.run(*(leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)))
        return found if self.results is None else tree_unflatten(found, self.results)
