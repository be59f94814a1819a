"""An experiment's state, as the API, the page and the command line are told it."""

from __future__ import annotations

from collections.abc import Iterable

from dispatcher.experiments.lifetime import cooling_until_seconds
from dispatcher.experiments.verdict import ArmReading, MetricReading, verdict
from dispatcher.vocabulary.experiment import ArmSpecification, ArmTally, ExperimentState
from dispatcher.wire.decision import moment
from dispatcher.wire.experiments import (
    ArmMetric,
    ArmTold,
    Experiments,
    ExperimentTold,
    GuardrailTold,
    MetricTold,
    ShadowTold,
)

_DIGITS = 6


def experiments_told(states: Iterable[ExperimentState], awaited: int, forgotten: int) -> Experiments:
    told = [experiment_told(state) for state in states]
    return Experiments(experiments=told, awaited_decisions=awaited, forgotten_decisions=forgotten)


def experiment_told(state: ExperimentState) -> ExperimentTold:
    one, read, shadow = state.specification, verdict(state), state.shadow
    return ExperimentTold(
        id=state.id,
        phase=state.phase,
        winner=state.winner,
        verdict=read.sentence,
        because=state.because,
        mode=one.mode,
        primary=one.primary,
        guardrails=[GuardrailTold(metric=each.metric, tolerance=each.tolerance) for each in one.guardrails],
        layer=one.layer,
        traffic_ratio=one.traffic_ratio,
        split_ratio=one.split_ratio,
        sticky_seconds=one.sticky_seconds,
        max_seconds=one.max_seconds,
        cooldown_seconds=one.cooldown_seconds,
        started_at=moment(state.started_at_seconds),
        ended_at=moment(state.ended_at_seconds),
        cooling_until=moment(cooling_until_seconds(state)),
        a=_arm(one.a, state.a, read.a_missing_ratio),
        b=_arm(one.b, state.b, read.b_missing_ratio),
        metrics=[_metric(each) for each in read.metrics],
        shadow=ShadowTold(
            decisions=shadow.n,
            same=shadow.same,
            different_model=shadow.different_model,
            different_verdict=shadow.different_verdict,
        ),
        left_out=dict(state.left_out),
    )


def _arm(patch: ArmSpecification, tally: ArmTally, missing_ratio: float | None) -> ArmTold:
    return ArmTold(
        policy=dict(patch.policy),
        models=list(patch.models),
        assigned=tally.assigned,
        observed=tally.observed,
        missing_ratio=_short(missing_ratio),
    )


def _metric(read: MetricReading) -> MetricTold:
    return MetricTold(
        metric=read.metric,
        role=read.role,
        a=_of_arm(read.a),
        b=_of_arm(read.b),
        delta=_short(read.delta),
        low=_short(read.low),
        high=_short(read.high),
        p=_short(read.p),
        alpha=_short(read.alpha),
        p_guardrail=_short(read.p_guardrail),
        alpha_guardrail=_short(read.alpha_guardrail),
    )


def _of_arm(read: ArmReading) -> ArmMetric:
    return ArmMetric(n=read.n, units=round(read.units, 1), value=_short(read.value), clipped=read.clipped)


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
