"""Beginning and ending an experiment. Each end is for good: statistics that begin again after every end would, by and
by, find something in nothing. What comes back after a rollback is a new experiment, once the cooldown is over.

| phase | begins with | B still gets requests |
|---|---|---|
| running | started | yes |
| won | the primary metric's p ≤ α | no: the operator puts the winner into the configuration |
| rolled_back | a guardrail's p ≤ its share of its α | no |
| stopped | by hand, or a reload under which an arm makes no sense | no |
| lapsed | max_seconds without a verdict | no |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dispatcher.vocabulary.experiment import Arm, ExperimentState, ExperimentTurned, Metric, Phase, Specification
from dispatcher.vocabulary.words import Seconds

MAX_RUNNING = 4  # at once; each multiplies the settings that must be kept ready by three
_ROUNDING = 1e-9

Turn = tuple[ExperimentState, tuple[ExperimentTurned, ...]]


def started(specification: Specification, states: Sequence[ExperimentState], now_seconds: float) -> Turn:
    """Running, in a free slice of its layer. `specification.conflicts` has said before that there is one; ValueError
    otherwise."""
    start = free_slice(specification, states)
    if start is None:
        raise ValueError(f"layer {specification.layer} has no {specification.traffic_ratio:g} of its traffic free")
    state = ExperimentState(
        specification=specification,
        started_at_seconds=now_seconds,
        slice_start_ratio=start,
        p_guardrails=(1.0,) * len(specification.guardrails),
    )
    words = f"{specification.mode} of {specification.traffic_ratio:.0%} of layer {specification.layer}"
    if specification.mode == "split":
        words += f", {specification.split_ratio:.0%} of it to B, by {specification.primary}"
    event = ExperimentTurned(
        at_seconds=now_seconds, experiment_id=state.id, before="none", after="running", because=words
    )
    return state, (event,)


def stopped(state: ExperimentState, now_seconds: float, because: str = "stopped by hand") -> Turn:
    """No verdict any more. Nothing happens to one that has ended before."""
    return ended(state, "stopped", because, now_seconds)


def lapsed(state: ExperimentState, now_seconds: float) -> Turn:
    """Ends it if its time is over; to be asked now and then, since a silent experiment sees no outcome."""
    most_seconds = state.specification.max_seconds
    if state.phase != "running" or now_seconds < state.started_at_seconds + most_seconds:
        return state, ()
    return ended(state, "lapsed", f"no verdict within {Seconds(most_seconds)}", now_seconds)


def ended(
    state: ExperimentState,
    phase: Phase,
    because: str,
    now_seconds: float,
    *,
    winner: Arm | None = None,
    metric: Metric | None = None,
) -> Turn:
    if state.phase != "running":
        return state, ()
    event = ExperimentTurned(
        at_seconds=now_seconds,
        experiment_id=state.id,
        before=state.phase,
        after=phase,
        because=because,
        winner=winner,
        metric=metric,
    )
    state = replace(state, phase=phase, ended_at_seconds=now_seconds, winner=winner, because=because)
    return state, (event,)


def cooling_until_seconds(state: ExperimentState) -> float | None:
    """Until when the B of a rollback must not be tried again; None: it was not rolled back."""
    if state.phase != "rolled_back" or state.ended_at_seconds is None:
        return None
    return state.ended_at_seconds + state.specification.cooldown_seconds


def free_slice(specification: Specification, states: Sequence[ExperimentState]) -> float | None:
    """Where in the layer a share of that size is free, the first such place; None: nowhere."""
    taken = sorted(
        (state.slice_start_ratio, state.slice_start_ratio + state.specification.traffic_ratio)
        for state in states
        if state.phase == "running" and state.specification.layer == specification.layer
    )
    start = 0.0
    for low, high in [*taken, (1.0, 1.0)]:
        if low - start >= specification.traffic_ratio - _ROUNDING:
            return start
        start = max(start, high)
    return None
