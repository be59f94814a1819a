"""One outcome further: the step function of an experiment."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.experiments.evidence import (
    ALPHA,
    GUARDRAIL_ALPHA,
    TAU,
    Comparison,
    comparison,
    one_sided_p,
    two_sided_p,
)
from dispatcher.experiments.lifetime import ended, lapsed
from dispatcher.experiments.measure import Counted, counted, flaw
from dispatcher.experiments.scales import in_words
from dispatcher.vocabulary.experiment import (
    Arm,
    ArmObserved,
    ExperimentEvent,
    ExperimentState,
    Metric,
    Observation,
    Specification,
)

Step = tuple[ExperimentState, tuple[ExperimentEvent, ...]]


def primary_alpha(specification: Specification) -> float:
    """There is one primary metric, so it has the whole of it."""
    return ALPHA


def guardrail_alpha(specification: Specification) -> float:
    """Bonferroni: the promise is for all guardrails together."""
    return GUARDRAIL_ALPHA / max(1, len(specification.guardrails))


def assignment_counted(state: ExperimentState, arm: Arm) -> ExperimentState:
    """One request more was decided by the arm. Beside `observed` it tells whose outcomes are missing."""
    known = state.a if arm == "A" else state.b
    known = replace(known, assigned=known.assigned + 1)
    return replace(state, a=known) if arm == "A" else replace(state, b=known)


def observe(state: ExperimentState, observation: Observation, now_seconds: float) -> Step:
    """The state with the outcome in it, and what is to be told of it.

    Looks at the evidence every time: that is what always-valid p-values are for. A guardrail comes before the primary
    metric: what wins on latency because it fails is rolled back. After its end an experiment takes nothing in.
    """
    state, over = lapsed(state, now_seconds)
    if state.phase != "running":
        return state, over
    if flaw(observation) is not None:
        return _without(state, "flawed"), ()
    found = counted(state, observation)
    if found is None:
        return _without(state, observation.status), ()
    told = ArmObserved(at_seconds=now_seconds, experiment_id=state.id, arm=observation.arm)
    state, turns = _concluded(_weighed(state, found), now_seconds)
    return state, (told, *turns)


def _without(state: ExperimentState, why: str) -> ExperimentState:
    return replace(state, left_out={**state.left_out, why: state.left_out.get(why, 0) + 1})


def compared(state: ExperimentState, metric: Metric) -> Comparison | None:
    return comparison(metric, getattr(state.a, metric), getattr(state.b, metric))


def _weighed(state: ExperimentState, found: Counted) -> ExperimentState:
    """p ← min(p, 1/Λ), of every metric that is looked at."""
    specification = state.specification
    differ = {
        metric: comparison(metric, getattr(found.a, metric), getattr(found.b, metric))
        for metric in _looked_at(specification)
    }
    primary, guardrails = differ[specification.primary], []
    for guardrail, p in zip(specification.guardrails, state.p_guardrails, strict=True):
        metric = differ[guardrail.metric]
        now = 1.0 if metric is None else one_sided_p(metric, TAU[guardrail.metric], guardrail.tolerance)
        guardrails.append(min(p, now))
    now = 1.0 if primary is None else two_sided_p(primary, TAU[specification.primary])
    return replace(
        state,
        a=found.a,
        b=found.b,
        spread=found.spread,
        held=found.held,
        p_primary=min(state.p_primary, now),
        p_guardrails=tuple(guardrails),
    )


def _looked_at(specification: Specification) -> tuple[Metric, ...]:
    return (specification.primary, *(guardrail.metric for guardrail in specification.guardrails))


def _concluded(state: ExperimentState, now_seconds: float) -> Step:
    specification = state.specification
    for guardrail, p in zip(specification.guardrails, state.p_guardrails, strict=True):
        if p <= guardrail_alpha(specification):
            words = f"guardrail {guardrail.metric} broken: {in_words(state, guardrail.metric)} (p {p:.2g})"
            return ended(state, "rolled_back", words, now_seconds, metric=guardrail.metric)
    if state.p_primary > primary_alpha(specification) or (found := compared(state, specification.primary)) is None:
        return state, ()
    winner: Arm = "A" if found.delta > 0 else "B"
    words = f"{winner} is better by {specification.primary}: {in_words(state, specification.primary)}"
    words += f" (p {state.p_primary:.2g})"
    return ended(state, "won", words, now_seconds, winner=winner, metric=specification.primary)
