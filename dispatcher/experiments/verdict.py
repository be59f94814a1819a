"""A state, read: the numbers behind each metric, what is still missing, and one sentence for a person."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from dispatcher.experiments.evidence import ALPHA, MIN_UNITS, TAU, half_width
from dispatcher.experiments.observe import compared, guardrail_alpha, primary_alpha
from dispatcher.experiments.scales import in_words, level
from dispatcher.experiments.sums import effective_units
from dispatcher.vocabulary.experiment import METRICS, Arm, ExperimentState, Metric, Phase, Sums

Role = Literal["primary", "guardrail", "both", "watched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReading:
    """value: success ratio, seconds (geometric mean) or quality of 0..10; None: nothing observed. units: effective,
    independent ones: what is counted up to the least number."""

    n: int
    units: float
    value: float | None
    clipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricReading:
    """delta: B − A of the loss (error rate, ln seconds, 1 − quality / 10), above 0: B is worse; low, high: it lies
    between them, at every look, with 95 %. None: too few units. p: None where the metric decides nothing. alpha: what
    p is held against, its share of the error allowed."""

    metric: Metric
    role: Role
    a: ArmReading
    b: ArmReading
    delta: float | None
    low: float | None
    high: float | None
    p: float | None
    alpha: float | None
    p_guardrail: float | None
    alpha_guardrail: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """missing_ratio: share of the decided requests without a counted outcome, per arm; None: none was decided. An arm
    whose outcomes are missing more often hides something."""

    experiment_id: str
    phase: Phase
    winner: Arm | None
    metrics: tuple[MetricReading, ...]
    a_missing_ratio: float | None
    b_missing_ratio: float | None
    sentence: str


def verdict(state: ExperimentState) -> Verdict:
    return Verdict(
        experiment_id=state.id,
        phase=state.phase,
        winner=state.winner,
        metrics=tuple(_reading(state, metric) for metric in METRICS),
        a_missing_ratio=_missing(state.a.assigned, state.a.observed),
        b_missing_ratio=_missing(state.b.assigned, state.b.observed),
        sentence=_sentence(state),
    )


def _missing(assigned: int, observed: int) -> float | None:
    return max(0.0, 1 - observed / assigned) if assigned else None


def _reading(state: ExperimentState, metric: Metric) -> MetricReading:
    specification, found = state.specification, compared(state, metric)
    is_primary = metric == specification.primary
    guardrails = [guardrail.metric for guardrail in specification.guardrails]
    is_guardrail = metric in guardrails
    roles: dict[tuple[bool, bool], Role] = {
        (True, True): "both",
        (True, False): "primary",
        (False, True): "guardrail",
        (False, False): "watched",
    }
    width = None if found is None else half_width(found, TAU[metric], ALPHA)
    return MetricReading(
        metric=metric,
        role=roles[is_primary, is_guardrail],
        a=_arm(metric, getattr(state.a, metric)),
        b=_arm(metric, getattr(state.b, metric)),
        delta=None if found is None else found.delta,
        low=None if found is None or width is None else found.delta - width,
        high=None if found is None or width is None else found.delta + width,
        p=state.p_primary if is_primary else None,
        alpha=primary_alpha(specification) if is_primary else None,
        p_guardrail=state.p_guardrails[guardrails.index(metric)] if is_guardrail else None,
        alpha_guardrail=guardrail_alpha(specification) if is_guardrail else None,
    )


def _arm(metric: Metric, sums: Sums) -> ArmReading:
    return ArmReading(n=sums.n, units=effective_units(sums), value=level(metric, sums), clipped=sums.clipped)


def _sentence(state: ExperimentState) -> str:
    specification = state.specification
    if specification.mode == "shadow":
        shadow = state.shadow
        words = f"{shadow.same} of {shadow.n} decisions the same" if shadow.n else "nothing decided yet"
        others = f"{shadow.different_model} with another model, {shadow.different_verdict} where only one found any"
        return f"{words}, {others}" if shadow.n else words
    if state.phase != "running":
        return state.because
    a, b = getattr(state.a, specification.primary), getattr(state.b, specification.primary)
    short = [(arm, sums) for arm, sums in (("A", a), ("B", b)) if effective_units(sums) < MIN_UNITS]
    if not short:
        words = f"no difference found yet by {specification.primary}: {in_words(state, specification.primary)}"
        return f"{words} (p {state.p_primary:.2g}, decided at {primary_alpha(specification):g})"
    words = " and ".join(
        f"{arm} has {effective_units(sums):.0f} of {MIN_UNITS} independent units ({sums.n} observations)"
        for arm, sums in short
    )
    return f"too little for a verdict by {specification.primary}: {words}{_advice(state, short)}"


def _advice(state: ExperimentState, short: list[tuple[str, Sums]]) -> str:
    """Few agents never become many units, however much they ask."""
    few = any(sums.n >= 3 * MIN_UNITS and ceil(effective_units(sums)) < MIN_UNITS for _, sums in short)
    if not few or state.specification.sticky_seconds is not None:
        return ""
    return "; few agents ask most of it: with sticky_seconds: 3600 each is assigned anew every hour"
