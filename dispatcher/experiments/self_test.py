"""Would these rules cry wolf on this traffic? Recorded outcomes, dealt to two arms that are the same.

The outcomes stay as they were and in their order; in every round only the hash that deals units to arms has another
salt. So whatever is odd about the traffic (heavy tails, agents that resemble themselves, rare errors) is in it, and
any winner is false. The promise holds if no more rounds than α have one; `limit` says from how many on it is broken
and not bad luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb

from dispatcher.experiments.assign import arm_of
from dispatcher.experiments.evidence import ALPHA, GUARDRAIL_ALPHA
from dispatcher.experiments.lifetime import started
from dispatcher.experiments.observe import observe
from dispatcher.vocabulary.experiment import ArmSpecification, Observation, Specification

MAX_OBSERVATIONS = 10_000
MAX_ROUNDS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """without_verdict_units: rounds in which an arm never had enough units to be compared at all. ok None: so it was in
    most rounds, and nothing was tested."""

    rounds: int
    observations: int
    false_wins: int
    false_rollbacks: int
    wins_limit: int
    rollbacks_limit: int
    without_verdict_units: int
    ok: bool | None


def self_test(observations: Sequence[Observation], specification: Specification, rounds: int = 200) -> SelfTest:
    """Of the newest MAX_OBSERVATIONS; the arms they were recorded under do not matter, and loads stay with the request
    that waited for them. About 20 µs per outcome and round: not for an event loop. ValueError for rounds outside
    1..MAX_ROUNDS."""
    if not 1 <= rounds <= MAX_ROUNDS:
        raise ValueError(f"rounds is {rounds}; it must be from 1 to {MAX_ROUNDS}")
    dealt = [replace(one, switch_arm=None) for one in observations[-MAX_OBSERVATIONS:]]
    ends = [_round(dealt, specification, f"self-test {number}") for number in range(rounds)]
    wins, rollbacks = ends.count("won"), ends.count("rolled_back")
    limits = tolerable(rounds, ALPHA), tolerable(rounds, GUARDRAIL_ALPHA)
    without = ends.count("not compared")
    within = wins <= limits[0] and rollbacks <= limits[1]
    return SelfTest(
        rounds=rounds,
        observations=len(dealt),
        false_wins=wins,
        false_rollbacks=rollbacks,
        wins_limit=limits[0],
        rollbacks_limit=limits[1],
        without_verdict_units=without,
        ok=None if 2 * without > rounds and within else within,
    )


def _round(observations: Sequence[Observation], specification: Specification, salt: str) -> str:
    same = replace(specification, mode="split", traffic_ratio=1.0, a=ArmSpecification(), b=ArmSpecification())
    state, _ = started(same, (), 0.0)
    for one in observations:
        arm = arm_of(salt, one.unit, specification.split_ratio)
        state, _ = observe(state, replace(one, arm=arm), 0.0)
        if state.phase != "running":
            return state.phase
    compared = state.p_primary < 1.0 or any(p < 1.0 for p in state.p_guardrails)
    return state.phase if compared else "not compared"


def tolerable(rounds: int, alpha: float) -> int:
    """The most false alarms that a true rate of alpha still explains: more have a chance below 1 %."""
    most, tail = rounds, 0.0
    while most > 0:
        tail += comb(rounds, most) * alpha**most * (1 - alpha) ** (rounds - most)
        if tail > 0.01:
            break
        most -= 1
    return most
