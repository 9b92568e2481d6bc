"""Files of exported optimizers: the update rule of a run, in tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metarun.adapted.optimizer import DTYPES, OWN, LearnedOptimizer
from metarun.algorithms.gradient.pieces import Rule
from metarun.config.build import construct
from metarun.config.check import check_section
from metarun.config.environment import resolved
from metarun.config.schema import declaration
from metarun.config.trust import Trust, admit
from metarun.errors import UserError, require
from metarun.moved import updated
from metarun.training import checkpoint
from metarun.untrusted import plain

FORMAT = 1
_BASE = f"{Rule.__module__}.{Rule.__qualname__}"
_DTYPES = {str(each).removeprefix("torch."): each for each in DTYPES}


class MakesOptimizer(Protocol):
    """A constructor of optimizers with one learned update rule."""

    def __call__(self, params: Any, *, lr: float | Tensor = 1.0, weight_decay: float = 0.0) -> LearnedOptimizer:
        """Return an optimizer; arguments as for :class:`~metarun.adapted.optimizer.LearnedOptimizer`."""


def save_optimizer(
    path: Path, rule: Mapping[str, Any], lr: float, steps: int, parameters: Mapping[str, Tensor]
) -> None:
    """Write the file that :func:`load_optimizer` reads.

    Args:
        path: The file.
        rule: Configuration of the rule.
        lr: The rule's step size, ``algorithm.inner_lr``.
        steps: Inner steps in meta-training.
        parameters: Learned values of the rule, by name.

    Raises:
        UserError: The rule has no learned values, or they belong to the parameters of the run's own model.
    """
    name = str(rule.get("_target_")).rpartition(".")[2]
    require(bool(parameters), f"{name}: nothing is learned in this update rule; torch.optim has such optimizers itself")
    dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
    content = {
        "format": FORMAT,
        "rule": dict(rule),
        "lr": lr,
        "steps": steps,
        "dtype": dtype,
        "parameters": {key: value.detach().cpu().clone() for key, value in parameters.items()},
    }
    _rebuilt(content, name)
    checkpoint.save(path, content)


def load_optimizer(path: str | Path, trust: bool | str | Sequence[str] = False) -> MakesOptimizer:
    """Load an optimizer that ``metarun export RUN --to optimizer`` wrote.

    ``optimizer = metarun.load_optimizer("optimizer.pt")(model.parameters(), lr=1.0)`` is used as any torch optimizer.
    The file is treated as data: nothing in it is run, and only metarun's own update rules are built.

    Args:
        path: The file.
        trust: Permission for other update rules: ``True``, or import paths of your own modules or classes.

    Returns:
        A constructor with the arguments of :class:`~metarun.adapted.optimizer.LearnedOptimizer` but the rule.

    Raises:
        UserError: There is no such file, it is damaged, or it names code that is not permitted.
    """
    file = Path(path).expanduser()
    require(file.is_file(), f"{path}: no such file; `metarun export RUN --to optimizer` writes one")
    kept = checkpoint.read(file, torch.device("cpu"), str(file))
    require(kept.get("format") == FORMAT and "rule" in kept, f"{file}: not an exported optimizer of this version")
    require(plain(kept["rule"]) and isinstance(kept["rule"], dict), f"{file} is damaged: its rule is not plain values")
    kept["rule"] = updated(kept["rule"])
    admit({"rule": kept["rule"]}, str(file), Trust.of(trust))
    return partial(LearnedOptimizer, rule=_rebuilt(kept, str(file)))


def _rebuilt(content: Mapping[str, Any], where: str) -> Rule:
    """Build the rule that the content of a file describes.

    Raises:
        UserError: The content does not describe one that fits any parameters.
    """
    section = resolved({"rule": content["rule"]})["rule"]
    target = str(section.get("_target_"))
    require(_BASE in declaration(target).ancestors, f"{where}: rule._target_={target}: not a subclass of {_BASE}")
    check_section("rule", section)
    try:
        rule: Rule = construct(section)
        name = type(rule).__name__
        dtype = _DTYPES[content["dtype"]]
        rule.prepare({OWN: torch.zeros(1)}, float(content["lr"]), int(content["steps"]))
        fits = rule.fits_any_parameters and not rule.carries
        require(fits, f"{name}: its learned values belong to the parameters of the run's own model, and fit no others")
        rule.to(dtype).load_state_dict(content["parameters"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} is damaged: its parts do not fit together ({reason})") from None
    return rule
