from __future__ import annotations

from dataclasses import replace
from math import comb

import pytest

from dispatcher.experiments.self_test import self_test, tolerable
from tests.experiments.simulation import Traffic, a_specification


def test_the_rules_do_not_cry_wolf_on_recorded_traffic_of_agents_and_heavy_tails():
    recorded = list(Traffic(agents=200, agent_spread=0.3).of(1, 600))
    found = self_test(recorded, a_specification(primary="log_latency", split_ratio=0.4), rounds=20)

    assert found.ok is True
    assert (20, 600) == (found.rounds, found.observations)


def test_outcomes_that_belong_to_too_few_agents_test_nothing():
    found = self_test(list(Traffic(agents=3).of(1, 300)), a_specification(), rounds=5)

    assert (None, 5) == (found.ok, found.without_verdict_units)


def test_no_outcomes_test_nothing():
    assert self_test([], a_specification(), rounds=3).ok is None


def test_it_is_the_same_every_time_and_whatever_arm_the_outcomes_came_from():
    recorded = list(Traffic().of(2, 200))
    turned = [replace(one, arm="A" if one.arm == "B" else "B") for one in recorded]

    assert self_test(recorded, a_specification(), rounds=5) == self_test(turned, a_specification(), rounds=5)


def test_rules_that_cry_wolf_are_found_out():
    """The same outcomes told as independent, although they come from 20 agents: dealt by agent, counted by request."""
    told = [replace(one, shared=False) for one in Traffic(agents=20, agent_spread=0.6).of(3, 600)]

    assert self_test(told, a_specification(primary="log_latency"), rounds=20).ok is False


@pytest.mark.parametrize(("rounds", "alpha"), [(1, 0.05), (20, 0.05), (200, 0.05), (200, 0.1), (1_000, 0.1)])
def test_more_than_what_is_tolerable_has_a_chance_below_one_in_a_hundred(rounds, alpha):
    def beyond(most: int) -> float:
        return sum(comb(rounds, k) * alpha**k * (1 - alpha) ** (rounds - k) for k in range(most + 1, rounds + 1))

    most = tolerable(rounds, alpha)

    assert beyond(most) <= 0.01 < beyond(most - 1)


@pytest.mark.parametrize("rounds", [0, -1, 1_001])
def test_the_number_of_rounds_is_bounded(rounds):
    with pytest.raises(ValueError, match="it must be from 1 to 1000"):
        self_test([], a_specification(), rounds=rounds)
