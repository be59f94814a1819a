"""How strongly two arms differ, valid however often one looks: the mixture sequential probability ratio test.

    Δ = mean B − mean A      V = s²_A/n_A + s²_B/n_B
    Λ = √(V/(V+τ²)) · exp(τ²Δ²/(2V(V+τ²)))      p ← min(p, 1/Λ)

Λ is the likelihood of the data if Δ were drawn from N(0, τ²), over that if Δ = 0: a martingale under "no difference",
so it ever exceeds 1/α with probability α at most (Ville), at all looks together. A guardrail asks one way only: Δ is
drawn from the upper half of the same N(0, τ²), which gives Λ · 2Φ(τΔ/√(V(V+τ²))). For a harm well seen that is 2Λ:
half the p-value, as one-sided tests have it; for an improvement it goes to 0.

Where an arm's own variance is less than that of both arms together, the latter is taken: under "no difference" it is
the better estimate. Rare failures make it needed: a small arm that has not had one yet takes itself for steady, and
beside a large arm that had some it would win (52 times in 1,000 comparisons of quality with itself, at 50 allowed;
see tests/experiments/test_promises.py).

And it has a floor, since V = 0 would make any difference certain. success: a rate of 2 % shows no error among 30 more
often than not, so p(1−p) is taken with half an error and half a success added (Jeffreys' prior), for each arm and for
both together. log_latency and quality: nothing here is reproducible to less than 5 % or half a point of ten, so s is at
least 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import erfc, exp, inf, log, sqrt

from dispatcher.experiments.sums import effective_units, mean, variance_of_mean
from dispatcher.vocabulary.experiment import Metric, Sums

TAU: Mapping[Metric, float] = {"success": 0.03, "log_latency": 0.2, "quality": 0.1}
ALPHA = 0.05  # of the primary metric, two-sided
GUARDRAIL_ALPHA = 0.1  # of all guardrails together, one-sided
MIN_UNITS = 30  # per arm: below that a mean is not normal enough, and its variance a guess
MIN_DEVIATION = 0.05  # of one log latency or quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """delta: B − A of the loss, so above 0 B is worse."""

    delta: float
    variance: float


def comparison(metric: Metric, a: Sums, b: Sums) -> Comparison | None:
    """None while either arm has too few units to compare."""
    if min(effective_units(a), effective_units(b)) < MIN_UNITS:
        return None
    mean_a, mean_b, own_a, own_b = mean(a), mean(b), variance_of_mean(a), variance_of_mean(b)
    if mean_a is None or mean_b is None or own_a is None or own_b is None:
        return None
    units_a, units_b = effective_units(a), effective_units(b)
    together = (own_a * units_a**2 + own_b * units_b**2) / (units_a + units_b)
    least_a, least_b = _floors(metric, a, b)
    variance_a = max(own_a, together / units_a, least_a / a.n)
    variance_b = max(own_b, together / units_b, least_b / b.n)
    return Comparison(delta=mean_b - mean_a, variance=variance_a + variance_b)


def _floors(metric: Metric, a: Sums, b: Sums) -> tuple[float, float]:
    """Least variance of one observation, per arm, whatever was observed."""
    if metric != "success":
        return MIN_DEVIATION**2, MIN_DEVIATION**2
    errors_a, errors_b = a.origin * a.n + a.total, b.origin * b.n + b.total
    pooled = _binomial(errors_a + errors_b, a.n + b.n)
    return max(pooled, _binomial(errors_a, a.n)), max(pooled, _binomial(errors_b, b.n))


def _binomial(errors: float, n: int) -> float:
    rate = (errors + 0.5) / (n + 1)
    return rate * (1 - rate)


def two_sided_p(found: Comparison, tau: float) -> float:
    return _p(_log_ratio(found, tau))


def one_sided_p(found: Comparison, tau: float, tolerance: float = 0.0) -> float:
    """Of "B is worse by no more than the tolerance"."""
    shifted = Comparison(delta=found.delta - tolerance, variance=found.variance)
    z = tau * shifted.delta / sqrt(shifted.variance * (shifted.variance + tau * tau))
    twice_phi = erfc(-z / sqrt(2))
    return _p(_log_ratio(shifted, tau) + log(twice_phi)) if twice_phi > 0 else 1.0


def _log_ratio(found: Comparison, tau: float) -> float:
    """ln Λ."""
    v, t = found.variance, tau * tau
    return 0.5 * log(v / (v + t)) + t * found.delta**2 / (2 * v * (v + t))


def _p(log_ratio: float) -> float:
    return exp(-log_ratio) if log_ratio > 0 else 1.0


def half_width(found: Comparison, tau: float, alpha: float = ALPHA) -> float:
    """Of the interval around Δ that covers the truth at every look with 1 − α: where Λ would reach 1/α."""
    v, t = found.variance, tau * tau
    return sqrt(2 * v * (v + t) / t * (0.5 * log((v + t) / v) - log(alpha))) if v < inf else inf
