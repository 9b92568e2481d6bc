"""Learned optimizers outside metarun: the update rule of a run's inner loop as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metarun.algorithms.gradient.pieces import Rule, State

DTYPES = (torch.float32, torch.float64)
"""Types of parameters that can be optimized."""
OWN = "parameter"
"""Stands for the name of the parameter in the state of the rule for this parameter alone."""


class LearnedOptimizer(Optimizer):
    """A meta-trained update rule as a torch optimizer: p <- p + lr u(g), the steps of the inner loop that learned u.

    It has parameter groups, ``state_dict``, closures and works with torch's learning rate schedulers. The rule is
    computed for all parameters at once, whatever their group. A parameter without a gradient is left as it is, and its
    step count does not go on. Gradients are constants for the rule.

    Args:
        params: Parameters, or dictionaries of parameter groups, as for any torch optimizer. They are of type float32 or
            float64. The rule is computed in the type of the parameters.
        rule: The update rule. It is copied, and no longer learns.
        lr: Multiplier of the rule's updates, not a step size: 1 takes the steps of meta-training. Schedulers change it.
        weight_decay: Decoupled weight decay: p is first multiplied by 1 - lr * weight_decay.

    Raises:
        ValueError: ``lr`` or ``weight_decay`` is negative.
        TypeError: A parameter is of another type.
    """

    def __init__(self, params: Any, rule: Rule, *, lr: float | Tensor = 1.0, weight_decay: float = 0.0) -> None:
        if not lr >= 0:
            raise ValueError(
                f"lr={lr}: a multiplier of the learned updates, at least 0; 1 takes them as they were learned"
            )
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay={weight_decay}: at least 0")
        self.rule = copy.deepcopy(rule).requires_grad_(False)
        self._rules: dict[tuple[torch.device, torch.dtype], Rule] = {}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as for any torch optimizer.

        Args:
            param_group: ``params``, and ``lr`` and ``weight_decay`` where they differ from the optimizer's.

        Raises:
            TypeError: A parameter is not of type float32 or float64.
        """
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dtype not in DTYPES:
                del self.param_groups[-1]
                raise TypeError(f"a parameter is of type {p.dtype}; a learned optimizer needs float32 or float64")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            What the closure returned; ``None`` without one.

        Raises:
            RuntimeError: A gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        alike: dict[Any, list[tuple[Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError("a learned optimizer needs dense gradients, and one is sparse")
                state = self.state[p]
                if not state:
                    state["step"], state["rule"] = 0, self._rule(p).init({OWN: p})
                alike.setdefault((state["step"], p.device, p.dtype), []).append((p, group))
        for (step, *_), members in alike.items():
            self._move([p for p, _ in members], [group for _, group in members], step)
        return loss

    def _move(self, parameters: list[Tensor], groups: list[dict[str, Any]], step: int) -> None:
        """Take step number ``step`` with parameters of one device and type."""
        names = [f"{OWN} {i}" for i in range(len(parameters))]
        gradients = {name: p.grad for name, p in zip(names, parameters, strict=True) if p.grad is not None}
        joint = join([self.state[p]["rule"] for p in parameters], names)
        changes, joint = self._rule(parameters[0]).update(gradients, joint, step)
        for p, each in zip(parameters, split(joint, names, [p.numel() for p in parameters]), strict=True):
            self.state[p].update(step=step + 1, rule=each)
        for group in {id(group): group for group in groups}.values():
            here = [i for i, each in enumerate(groups) if each is group]
            moved, change = [parameters[i] for i in here], [changes[names[i]] for i in here]
            if group["weight_decay"] != 0:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(moved, torch._foreach_mul(change, group["lr"]))

    def _rule(self, p: Tensor) -> Rule:
        """Return the rule on the device and in the type of a parameter."""
        key = (p.device, p.dtype)
        if key not in self._rules:
            self._rules[key] = copy.deepcopy(self.rule).to(*key)
        return self._rules[key]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle needs; torch's own leaves out what it does not know."""
        return {**super().__getstate__(), "rule": self.rule, "_rules": {}}


def join(states: Sequence[State], names: Iterable[str]) -> State:
    """Put the states of a rule for single parameters together into its state for all of them.

    Args:
        states: State for each parameter, made by ``rule.init({OWN: p})`` or by :func:`split`.
        names: Name of each parameter in the result.
    """
    joint: dict[str, Any] = {}
    for key, value in states[0].items():
        column = [state[key] for state in states]
        if key == OWN:
            joint.update(zip(names, column, strict=True))
        elif isinstance(value, dict):
            joint[key] = join(column, names)
        else:
            joint[key] = torch.cat(column) if value.dim() else value
    return joint


def split(state: State, names: Sequence[str], sizes: list[int]) -> list[State]:
    """Return the part of a rule's state that belongs to each parameter; the inverse of :func:`join`.

    Args:
        state: State for all parameters. A tensor belongs to the parameter of its name, or to all (a scalar), or has a
            row for each entry of the parameters in their order.
        names: Names of the parameters.
        sizes: Number of entries of each.
    """
    parts: list[State] = [{} for _ in names]
    place = {name: i for i, name in enumerate(names)}
    for key, value in state.items():
        if key in place:
            parts[place[key]][OWN] = value
            continue
        if isinstance(value, dict):
            each: Sequence[Any] = split(value, names, sizes)
        else:
            each = value.split(sizes) if value.dim() else [value] * len(names)
        for part, own in zip(parts, each, strict=True):
            part[key] = own
    return parts
