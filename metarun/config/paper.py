"""Published results, declared in a recipe's ``paper`` section, and the rule that compares runs with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from math import inf, isclose, isfinite, nan
from statistics import fmean
from typing import Any, Literal, get_args, get_type_hints

from metarun.errors import UserError, nearest
from metarun.types import strictly

Verdict = Literal["pass", "consistent", "inconclusive", "budget not reached", "miss"]
"""Result of a comparison.

``consistent``: as good as the paper's, but with too few seeds to pass. ``inconclusive``: within the interval over seeds
only because they differ so much; none of them reached the value. ``budget not reached``: a miss with fewer
iterations than the paper's.
"""
Source = Literal["paper", "code", "rerun", "quoted", "recalled", "own"]
"""Source of a value: the paper, the authors' code or stored results, a clean re-run (named in ``by``), a third
party's quotation, or ``recalled`` without a source. Recalled values are never presented as the paper's and never
counted. ``own``: a baseline that is measured here alone, whose claims have no value.
"""
FIRST_HAND: tuple[Source, ...] = ("paper", "code", "rerun")
"""Sources in which those who measured a value wrote it down."""
COUNTED: tuple[Source, ...] = (*FIRST_HAND, "quoted")
"""Sources of values against which a pass counts."""
SEEDS = 3
"""Smallest number of seeds that can pass. Fewer can only be consistent."""


@dataclass(frozen=True)
class Claim:
    """One published number.

    Attributes:
        id: Name of the claim.
        metric: Name of the metric in a summary.
        value: The value; ``None`` for our own baselines, and for papers that only plot curves, which need a ``bar``.
        ci95: Half-width of the paper's 95 % interval.
        decimals: Number of decimals to which the value is rounded, if that is coarse. The value then stands for all
            that round to it; ``None``: it counts as exact.
        step: Adaptation step or episode of the value; ``None``: the last.
        percent: True if the value is in per cent.
        lower_is_better: True if smaller values are better.
        verified: Source of this value; ``None``: that of the paper's other values.
        bar: A further level of our own to reach. Reaching it is not a pass.
        because: Reason for the bar.
    """

    id: str
    metric: str
    value: float | None = None
    ci95: float | None = None
    decimals: int | None = None
    step: int | None = None
    percent: bool = False
    lower_is_better: bool = False
    verified: Source | None = None
    bar: float | None = None
    because: str | None = None

    def found(self, summary: Mapping[str, Any]) -> tuple[float, float]:
        """Return the mean and the half-width of its interval in a run's summary, in the paper's unit."""
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

    @property
    def has_more_decimals(self) -> bool:
        """True if the value has more decimals than it claims to have."""
        if self.value is None or self.decimals is None:
            return False
        return round(self.value, self.decimals) != self.value

    @property
    def rounding(self) -> float:
        """Largest error of the value by rounding."""
        return 0.0 if self.decimals is None else 0.5 * 10.0**-self.decimals

    def reached(self, mean: float, level: float) -> bool:
        """Return whether ``mean`` is at least as good as ``level``, up to rounding. Non-finite values never are."""
        better = mean < level if self.lower_is_better else mean > level
        return isfinite(mean) and (better or isclose(mean, level))


@dataclass(frozen=True)
class Finding:
    """The result of runs for a claim.

    Attributes:
        claim: The claim.
        seeds: Test mean and half-width of its 95 % interval of each seed, in the paper's unit.
        short: True if the runs had fewer iterations than the paper's.
    """

    claim: Claim
    seeds: Mapping[int, tuple[float, float]]
    short: bool

    @property
    def ours(self) -> float:
        """Mean over seeds."""
        return fmean(mean for mean, _ in self.seeds.values())

    @property
    def ci95(self) -> float:
        """Half-width of one test's interval, averaged over seeds."""
        return fmean(half for _, half in self.seeds.values())

    @property
    def worst_seed(self) -> int:
        sign, means = -1 if self.claim.lower_is_better else 1, {seed: mean for seed, (mean, _) in self.seeds.items()}
        return min(means, key=lambda seed: sign * means[seed] if isfinite(means[seed]) else -inf)

    @property
    def slack(self) -> float:
        """Largest accepted shortfall: the half-width of the paper's interval or, if it has none, of ours.

        Ours is :attr:`student`, but at most the distance of the best seed from the mean, so that seeds that differ much
        do not pass without one that reached the value.
        """
        if self.claim.ci95 is not None or len(self.seeds) < SEEDS:
            return self.student
        from metarun.evaluation.statistics import over_seeds

        means = [mean for mean, _ in self.seeds.values()]
        best = (min if self.claim.lower_is_better else max)(means)
        # The best seed is taken back to the mean by what the test episodes add to the spread.
        share = self.student / (over_seeds(means).half_width or 1.0)
        return min(self.student, share * abs(best - self.ours))

    @property
    def student(self) -> float:
        """Half-width of the paper's interval or, if it has none, of Student's interval of our mean over seeds.

        The spread that is due to the test episodes is left out: fewer episodes must not make passing easier. With too
        few seeds it is the interval of one test, which cannot pass anyway.
        """
        if self.claim.ci95 is not None:
            return self.claim.ci95
        if len(self.seeds) < SEEDS:
            return self.ci95
        # Imported here because every check of a configuration imports this module, and NumPy is slow to import.
        from metarun.evaluation.statistics import over_seeds_without_test_noise

        means, half_widths = zip(*self.seeds.values(), strict=True)
        return over_seeds_without_test_noise(means, half_widths).half_width

    @property
    def verdict(self) -> Verdict | None:
        """Verdict against the paper's value; ``None`` if there is no value."""
        if self.claim.value is None:
            return None
        sign = 1 if self.claim.lower_is_better else -1
        value = self.claim.value + sign * self.claim.rounding
        if self.claim.reached(self.ours, value + sign * self.slack):
            return "pass" if len(self.seeds) >= SEEDS else "consistent"
        if self.claim.reached(self.ours, value + sign * self.student):
            return "inconclusive"
        return "budget not reached" if self.short else "miss"

    @property
    def bar_reached(self) -> bool | None:
        """True if the bar is reached; ``None`` if there is no bar."""
        return None if self.claim.bar is None else self.claim.reached(self.ours, self.claim.bar)


@dataclass(frozen=True)
class Paper:
    """A recipe's ``paper`` section. Recipes may share all of it but ``claims`` in a common file.

    Attributes:
        title: Title of the paper.
        arxiv: arXiv number.
        where: Table or section of the values.
        verified: Source of the values.
        claims: The published numbers.
        iterations: The paper's number of iterations, if known.
        open: Points that the published protocol leaves open or that differ here.
        differs: Reasons why known parts of the published episodes (way, shot, query, test_episodes) differ here.
        by: Author of the re-run, if ``verified`` is ``rerun``.
    """

    title: str
    arxiv: str
    where: str
    verified: Source
    claims: Sequence[Claim] = ()
    iterations: int | None = None
    open: str | None = None
    differs: Mapping[str, str] | None = None
    by: str | None = None

    @classmethod
    def of(cls, section: Any) -> Paper:
        """Parse a ``paper`` section; raises :class:`~metarun.errors.UserError` if it is invalid."""
        given = _checked("paper", section, cls)
        if (given["verified"] == "rerun") != ("by" in given):
            raise UserError("paper.by names the author of a re-run: it needs verified: rerun, and the reverse")
        if "claims" not in given:
            return cls(**given)
        claims = given.pop("claims")
        if not isinstance(claims, Mapping) or not claims:
            raise UserError("paper.claims: give one entry for each number, by its id in the catalogue")
        each = [Claim(**{"id": name, **_checked(f"paper.claims.{name}", claims[name], Claim)}) for name in claims]
        for claim in each:
            if given["verified"] == "own" and claim.value is not None:
                raise UserError(f"paper.claims.{claim.id}: with paper.verified=own there is no published value")
            if given["verified"] != "own" and claim.value is None and claim.bar is None:
                raise UserError(f"paper.claims.{claim.id} needs a value, or a bar")
            if claim.has_more_decimals:
                raise UserError(f"paper.claims.{claim.id}: value={claim.value} has more than {claim.decimals} decimals")
            if (claim.bar is None) != (claim.because is None):
                raise UserError(f"paper.claims.{claim.id}: bar and because need each other")
        return cls(**given, claims=each)

    def findings(self, summaries: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
        """Return the finding of each claim, given the summaries of finished runs by seed."""
        short = self.is_short({summary["iterations"] for summary in summaries.values()})
        return [
            Finding(claim, {seed: claim.found(summary) for seed, summary in summaries.items()}, short)
            for claim in self.claims
        ]

    def is_short(self, iterations: set[int]) -> bool:
        """Return whether all runs had fewer iterations than the paper's."""
        return self.iterations is not None and max(iterations) < self.iterations

    def source(self, claim: Claim) -> Source:
        """Return the source of the claim's value."""
        return claim.verified or self.verified


def worst(findings: Sequence[Finding]) -> Verdict | None:
    """Return the worst verdict of the claims with a value; ``None`` if none has one."""
    verdicts = [finding.verdict for finding in findings if finding.verdict is not None]
    return max(verdicts, key=get_args(Verdict).index, default=None)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _checked(where: str, section: Any, cls: type[Claim] | type[Paper]) -> dict[str, Any]:
    """Return the entries of ``section``, checked against the fields of ``cls``."""
    from pydantic import ValidationError

    if not isinstance(section, Mapping):
        raise UserError(f"{where} is not a section")
    hints = _hints(cls)  # type: ignore[arg-type]  # classes are hashable, whatever their instances are
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
