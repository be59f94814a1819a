"""Traffic with known truths, to see whether the promises hold. Seeded: the same seed is the same traffic.

Latencies: log-normal seconds of two kinds of task (short and long answers) with a tail of stalls. Quality: skewed, most
of it 8 to 9.5 and a few failures near 0. An agent's requests resemble each other: its own level of everything.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp

from dispatcher.experiments.assign import arm_of
from dispatcher.experiments.lifetime import started
from dispatcher.experiments.observe import observe
from dispatcher.vocabulary.experiment import (
    ArmSpecification,
    ExperimentState,
    Guardrail,
    Metric,
    Observation,
    Specification,
)

NOW = 1_700_000_000.0


def a_specification(**changes) -> Specification:
    return Specification(
        **{"id": "x", "a": ArmSpecification(), "b": ArmSpecification(policy={"margin_ratio": 0.1}), **changes}
    )


def a_state(**changes) -> ExperimentState:
    return started(a_specification(**changes), (), NOW)[0]


def guardrails(*metrics: Metric) -> tuple[Guardrail, ...]:
    return tuple(Guardrail(metric=metric) for metric in metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """error_a, error_b: true error rates. slower, better: what B does to seconds (factor) and quality (points).

    agents: how many there are, 0: every request its own. agent_spread: how much they differ (deviation of an agent's
    level in ln seconds; quality and errors move with it). uneven: the first agents ask far more than the last.
    period: after so many requests every agent is dealt anew; 0: never.
    """

    error_a: float = 0.03
    error_b: float = 0.03
    slower: float = 1.0
    better: float = 0.0
    agents: int = 0
    agent_spread: float = 0.0
    uneven: bool = False
    period: int = 0
    stall: float = 0.01
    bad_answer: float = 0.03

    def of(self, seed: int, requests: int, split_ratio: float = 0.5) -> Iterator[Observation]:
        chance = random.Random(seed)
        levels = [chance.gauss(0, self.agent_spread) for _ in range(self.agents)]
        weights = [1 / (rank + 1) if self.uneven else 1.0 for rank in range(self.agents)]
        for number in range(requests):
            agent = chance.choices(range(self.agents), weights)[0] if self.agents else None
            unit = f"{seed} agent {agent}" if self.agents else f"{seed} request {number}"
            unit += f"#{number // self.period}" if self.period and self.agents else ""
            arm = arm_of("simulation", unit, split_ratio)
            level = levels[agent] if agent is not None else 0.0
            yield self._one(chance, replace(_EMPTY, arm=arm, unit=unit, shared=agent is not None), level)

    def _one(self, chance: random.Random, blank: Observation, level: float) -> Observation:
        error = (self.error_b if blank.arm == "B" else self.error_a) * exp(level)
        if chance.random() < error:
            return replace(blank, status="error", duration_seconds=0.2)
        kind = 1.0 if chance.random() < 0.6 else 2.5
        seconds = exp(chance.gauss(kind + level, 0.6)) * (self.slower if blank.arm == "B" else 1.0)
        if chance.random() < self.stall:
            seconds *= chance.uniform(5, 40)
        quality = 10 * chance.betavariate(9, 1.5) - 2 * level
        if chance.random() < self.bad_answer:
            quality = chance.uniform(0, 1)
        quality = min(10.0, max(0.0, quality + (self.better if blank.arm == "B" else 0.0)))
        return replace(blank, duration_seconds=seconds, quality=round(quality, 1))


_EMPTY = Observation(arm="A", unit="", shared=False, status="ok")


def run(state: ExperimentState, observations: Iterator[Observation] | list[Observation]) -> ExperimentState:
    """Looked at after every sample, until it ends."""
    for one in observations:
        state, _ = observe(state, one, NOW)
        if state.phase != "running":
            break
    return state


def ends(specification: Specification, traffic: Traffic, seeds: range, requests: int) -> list[str]:
    """The phase at the end of each seed; `not compared` where p was never below 1."""
    found = []
    for seed in seeds:
        state = run(started(specification, (), NOW)[0], traffic.of(seed, requests, specification.split_ratio))
        looked = state.phase != "running" or state.p_primary < 1 or any(p < 1 for p in state.p_guardrails)
        found.append(state.phase if looked else "not compared")
    return found
