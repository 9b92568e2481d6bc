"""What a paper reports, as a recipe's ``paper`` section says it, and the rule by which runs are judged against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import inf, isclose, isfinite, nan
from statistics import fmean
from typing import Any, Literal, get_args, get_type_hints

from metarun.errors import UserError, nearest
from metarun.types import strictly

Verdict = Literal["pass", "consistent", "budget not reached", "miss"]
"""``consistent``: as good as the paper's, over too few seeds to say more. ``budget not reached``: a miss after fewer
iterations than the paper's."""
Source = Literal["paper", "code", "rerun", "quoted", "recalled"]
"""Where a value was read: in the paper, in the authors' code or stored results, in the results of a clean re-run that
``by`` names, in a third party's quotation, or nowhere (recalled: never to be given as the paper's, never counted)."""
COUNTED: tuple[Source, ...] = ("paper", "code", "rerun")
"""Sources of values against which a pass counts."""
SEEDS = 3
"""Fewer seeds than this can be consistent with a value, but cannot pass."""


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
    """A level of our own to reach, beside the value; ``because`` says why. Reaching it is no pass."""
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
        return tuple(nan if estimate[key] is None else factor * float(estimate[key]) for key in ("mean", "ci95"))  # type: ignore[return-value]

    def reached(self, mean: float, level: float) -> bool:
        """Whether ``mean`` is at least as good as ``level``, to rounding; what is not finite never is."""
        better = mean < level if self.lower_is_better else mean > level
        return isfinite(mean) and (better or isclose(mean, level))


@dataclass(frozen=True)
class Finding:
    """What runs found for a claim: per seed the test mean and the half-width of its 95 % interval, in the paper's unit.

    ``short`` says that the runs had fewer iterations than the paper's.
    """

    claim: Claim
    seeds: Mapping[int, tuple[float, float]]
    short: bool

    @property
    def ours(self) -> float:
        """The mean over seeds."""
        return fmean(mean for mean, _ in self.seeds.values())

    @property
    def ci95(self) -> float:
        """The half-width of one test's interval, averaged over seeds."""
        return fmean(half for _, half in self.seeds.values())

    @property
    def worst_seed(self) -> int:
        sign, means = -1 if self.claim.lower_is_better else 1, {seed: mean for seed, (mean, _) in self.seeds.items()}
        return min(means, key=lambda seed: sign * means[seed] if isfinite(means[seed]) else -inf)

    @property
    def slack(self) -> float:
        """How far short of the value the mean may fall: by the paper's interval, or where it gave none by ours.

        Ours is Student's interval of the mean over seeds, without what the test episodes add to their spread: fewer
        episodes must not make passing easier. Of too few seeds it is that of one test, which cannot pass anyway.
        """
        if self.claim.ci95 is not None:
            return self.claim.ci95
        if len(self.seeds) < SEEDS:
            return self.ci95
        # Here, since every configuration's check reads this module, and to import NumPy takes longer than an answer.
        from metarun.evaluation.statistics import over_seeds_without_test_noise

        means, half_widths = zip(*self.seeds.values(), strict=True)
        return over_seeds_without_test_noise(means, half_widths).half_width

    @property
    def verdict(self) -> Verdict | None:
        """By the paper's value; ``None`` where it gave none."""
        if self.claim.value is None:
            return None
        level = self.claim.value + (self.slack if self.claim.lower_is_better else -self.slack)
        if self.claim.reached(self.ours, level):
            return "pass" if len(self.seeds) >= SEEDS else "consistent"
        return "budget not reached" if self.short else "miss"

    @property
    def bar_reached(self) -> bool | None:
        """By the bar; ``None`` where there is none."""
        return None if self.claim.bar is None else self.claim.reached(self.ours, self.claim.bar)


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
    by: str | None = None
    """Whose clean re-run the values are of, where they are ``verified: rerun``."""

    @classmethod
    def of(cls, section: Any) -> Paper:
        """Of a section as it was written; raises :class:`~metarun.errors.UserError` for what it may not be."""
        given = _checked("paper", section, cls)
        if (given["verified"] == "rerun") != ("by" in given):
            raise UserError("paper.by names whose re-run the values are of: it goes with verified: rerun")
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

    def findings(self, summaries: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
        """Each claim's, from the summaries of finished runs by seed."""
        short = self.is_short({summary["iterations"] for summary in summaries.values()})
        return [
            Finding(claim, {seed: claim.found(summary) for seed, summary in summaries.items()}, short)
            for claim in self.claims
        ]

    def is_short(self, iterations: set[int]) -> bool:
        """Whether runs of ``iterations`` all had fewer than the paper's."""
        return self.iterations is not None and max(iterations) < self.iterations

    def source(self, claim: Claim) -> Source:
        """Where the claim's value was read."""
        return claim.verified or self.verified


def worst(findings: Sequence[Finding]) -> Verdict | None:
    """The worst verdict of the claims with a value; ``None`` if none has one."""
    verdicts = [finding.verdict for finding in findings if finding.verdict is not None]
    return max(verdicts, key=get_args(Verdict).index, default=None)


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
