"""Components that were renamed or moved, so that stored runs, learners and users' files keep working."""

from __future__ import annotations

import re
from typing import Any

_ALGORITHMS = "metarun.algorithms"
MOVED = {
    "metarun.evaluation.samples.Judge": "metarun.evaluation.samples.QualityClassifier",
    f"{_ALGORITHMS}.amortised.controls.Average": f"{_ALGORITHMS}.amortised.baselines.Average",
    f"{_ALGORITHMS}.amortised.controls.Lasso": f"{_ALGORITHMS}.amortised.baselines.Lasso",
    f"{_ALGORITHMS}.amortised.controls.LeastSquares": f"{_ALGORITHMS}.amortised.baselines.LeastSquares",
    f"{_ALGORITHMS}.amortised.controls.Neighbours": f"{_ALGORITHMS}.amortised.baselines.Neighbours",
    f"{_ALGORITHMS}.amortised.controls.Ridge": f"{_ALGORITHMS}.amortised.baselines.Ridge",
    f"{_ALGORITHMS}.gradient.adapts.Part": f"{_ALGORITHMS}.gradient.adapts.ParameterSubset",
    f"{_ALGORITHMS}.gradient.fresh.Fresh": f"{_ALGORITHMS}.gradient.random_init.RandomInit",
    f"{_ALGORITHMS}.gradient.outer.Difference": f"{_ALGORITHMS}.gradient.outer.ReptileGradient",
    f"{_ALGORITHMS}.gradient.windows.Truncated": f"{_ALGORITHMS}.gradient.truncated.TruncatedBackprop",
    f"{_ALGORITHMS}.rl.controls.Planning": f"{_ALGORITHMS}.rl.baselines.Planning",
    f"{_ALGORITHMS}.rl.controls.RandomActions": f"{_ALGORITHMS}.rl.baselines.RandomActions",
    f"{_ALGORITHMS}.rl.proximal.Proximal": f"{_ALGORITHMS}.rl.outer_ppo.OuterPPO",
    f"{_ALGORITHMS}.rl.trust_region.TrustRegion": f"{_ALGORITHMS}.rl.outer_trpo.OuterTRPO",
}
"""Former import paths of components, and their present ones."""
_PIECES = {
    old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in MOVED.items() if old.startswith(f"{_ALGORITHMS}.g")
}


def updated(config: Any) -> Any:
    """Return a configuration with former import paths replaced by present ones, wherever a ``_target_`` names one."""
    if isinstance(config, dict):
        return {key: _moved(value) if key == "_target_" else updated(value) for key, value in config.items()}
    return [updated(value) for value in config] if isinstance(config, list) else config


def renamed(config: Any) -> dict[str, str]:
    """Return the former import paths that a configuration names, with the present ones."""
    inner = list(config.values()) if isinstance(config, dict) else config if isinstance(config, list) else []
    target = config.get("_target_") if isinstance(config, dict) else None
    found = {target: MOVED[target]} if isinstance(target, str) and target in MOVED else {}
    for value in inner:
        found |= renamed(value)
    return found


def _moved(target: Any) -> Any:
    return MOVED.get(target, target) if isinstance(target, str) else target


def in_words(piece: Any) -> Any:
    """Return a protocol's entry for a piece in words: ``Part(norm=False)`` is ``parameter subset (norm=False)``.

    Other entries are returned as they are.
    """
    found = re.fullmatch(r"([A-Z]\w*)\((.*)\)", piece, re.DOTALL) if isinstance(piece, str) else None
    if found is None:
        return piece
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", _PIECES.get(found[1], found[1]))
    name = " ".join(word if word.isupper() else word.lower() for word in words)
    return f"{name} ({found[2]})" if found[2] else name
