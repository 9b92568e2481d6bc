"""What a paper reports, as a recipe's ``paper`` section says it, and whether a result is as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from typing import Any, Literal, get_args, get_type_hints

from metarun.errors import UserError, nearest
from metarun.types import strictly

Verdict = Literal["pass", "budget not reached", "miss"]
"""``budget not reached``: it missed after fewer iterations than the paper's."""
Source = Literal["paper", "code", "quoted", "recalled"]
"""Where a value was read: in the paper, in the authors' code or stored results, in a third party's quotation, or
nowhere (recalled: it is never to be given as the paper's)."""


@dataclass(frozen=True)
class Claim:
    """One published number. ``metric`` is its name in a summary, ``step`` (or episode) the place in its adaptation
    curve (null: the last). Papers that only draw curves give no ``value``; then there is a ``bar``."""

    id: str
    metric: str
    value: float | None = None
    ci95: float | None = None
    step: int | None = None
    percent: bool = False
    lower_is_better: bool = False
    verified: Source | None = None
    """Where this value was read; null: where the paper's others were."""
    bar: float | None = None
    """What is to be reached instead of the value and its interval; ``because`` says why."""
    because: str | None = None

    def found(self, summary: Mapping[str, Any]) -> tuple[float, float]:
        """The mean and the half-width of its interval in a run's summary, in the paper's unit."""
        estimate: Mapping[str, Any] | None
        if self.step is None:
            estimate = summary["test"].get(self.metric)
        else:
            at = {entry.get("step", entry.get("episode")): entry for entry in summary["adaptation"]}
            estimate = at.get(self.step)
        if estimate is None:
            where = self.metric if self.step is None else f"{self.metric} after {self.step}"
            raise UserError(f"paper.claims.{self.id}: the run has no {where}   it has: {', '.join(summary['test'])}")
        factor = 100.0 if self.percent else 1.0
        return factor * float(estimate["mean"]), factor * float(estimate["ci95"])

    def limit(self, ours_ci95: float) -> float:
        """What a mean must reach: the bar, or the value less the larger of the two intervals."""
        if self.bar is not None:
            return self.bar
        assert self.value is not None
        slack = max(self.ci95 or 0.0, ours_ci95 if isfinite(ours_ci95) else 0.0)
        return self.value + slack if self.lower_is_better else self.value - slack

    def judge(self, summaries: Mapping[int, Mapping[str, Any]], budget: int | None) -> dict[str, Any]:
        """Over the summaries of several seeds: the mean, one test's interval (their mean), the worst, the verdict."""
        found = {seed: self.found(summary) for seed, summary in summaries.items()}
        ours = sum(mean for mean, _ in found.values()) / len(found)
        ci95 = sum(ci for _, ci in found.values()) / len(found)
        worst = (max if self.lower_is_better else min)(found, key=lambda seed: found[seed][0])
        limit = self.limit(ci95)
        reached = ours <= limit if self.lower_is_better else ours >= limit
        short = budget is not None and all(summary["iterations"] < budget for summary in summaries.values())
        verdict: Verdict = "pass" if reached else "budget not reached" if short else "miss"
        return {
            "metric": self.metric, "step": self.step, "paper": self.value, "paper_ci95": self.ci95,
            "bar": round(limit, 6), "because": self.because, "lower_is_better": self.lower_is_better,
            "ours": ours, "ci95": ci95, "worst_seed": worst, "worst": found[worst][0],
            **({"verified": self.verified} if self.verified else {}),
            "seeds": {str(seed): {"mean": mean, "ci95": ci} for seed, (mean, ci) in found.items()},
            "verdict": verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class Paper:
    """A recipe's ``paper`` section, of which a file that recipes build on may hold what they share: all but ``claims``.

    ``open`` is what the published protocol leaves open or this one does otherwise,
    ``iterations`` the paper's number of them where it is known, ``differs`` why what is known of the published episodes
    (way, shot, query, test_episodes) is not the same here."""

    title: str
    arxiv: str
    where: str
    verified: Source
    claims: Sequence[Claim] = ()
    iterations: int | None = None
    open: str | None = None
    differs: Mapping[str, str] | None = None

    @classmethod
    def of(cls, section: Any) -> Paper:
        """Of a section as it was written; raises :class:`~metarun.errors.UserError` for what it may not be."""
        given = _checked("paper", section, cls)
        if "claims" not in given:
            return cls(**given)
        claims = given.pop("claims")
        if not isinstance(claims, Mapping) or not claims:
            raise UserError("paper.claims: one entry for each number is needed, by its id in the catalogue")
        each = [Claim(**{"id": name, **_checked(f"paper.claims.{name}", claims[name], Claim)}) for name in claims]
        for claim in each:
            if claim.value is None and claim.bar is None:
                raise UserError(f"paper.claims.{claim.id} needs a value, or a bar")
            if (claim.bar is None) != (claim.because is None):
                raise UserError(f"paper.claims.{claim.id}: a bar needs its because, and a because its bar")
        return cls(**given, claims=each)

    def judge(self, summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """``verdict``, the worst of the claims', and each claim's."""
        claims = {claim.id: claim.judge(summaries, self.iterations) for claim in self.claims}
        order = get_args(Verdict)
        return {"verdict": max((c["verdict"] for c in claims.values()), key=order.index), "claims": claims}


def _checked(where: str, section: Any, cls: type[Claim] | type[Paper]) -> dict[str, Any]:
    """The entries of ``section``, their names and types those of the fields of ``cls``."""
    from pydantic import ValidationError

    if not isinstance(section, Mapping):
        raise UserError(f"{where} is not a section")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.name != "id"}
    for name, value in section.items():
        if name not in known:
            raise UserError(f"unknown key '{where}.{name}'{nearest(str(name), known)}   allowed: {', '.join(known)}")
        if name == "claims":
            continue
        try:
            strictly(hints[name]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{where}.{name}={value!r}: {error.errors()[0]['msg'].lower()}") from None
    for name, field in known.items():
        if name not in section and field.default is MISSING:
            raise UserError(f"{where}.{name} is missing")
    return dict(section)
