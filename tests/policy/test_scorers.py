"""Capability, performance, health: each 0..1, and the weights that make one number of them."""

from __future__ import annotations

import pytest

from dispatcher.policy.decide import decide
from dispatcher.policy.scorers import TASK_NEEDS, capability, performance, total, weights
from dispatcher.vocabulary.decision import Prediction, Scores
from dispatcher.vocabulary.profile import Success
from dispatcher.vocabulary.request import COMPLEXITIES, TASKS
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, PolicySettings, Settings
from tests.builders import LLAMA, NOW, a_fleet, a_place_view, a_ready_view, a_request, a_world, some_profiles

POLICY = PolicySettings()


def taking(seconds: float) -> Prediction:
    return Prediction(
        wait_seconds=0.0,
        evict_seconds=0.0,
        load_seconds=0.0,
        first_token_seconds=0.0,
        decode_seconds=seconds,
        tokens_per_second=20.0,
        source="prior",
    )


def test_the_example_of_the_contract_scores_068():
    """capability 0.78, performance 0.43 (6.1 s predicted, no samples), health 1.0, a moderate request."""
    fast = performance(taking(6.1), Success(), POLICY)
    given = Scores(capability=0.78, performance=fast, health=1.0)

    assert pytest.approx(0.43, abs=0.005) == fast
    assert pytest.approx(0.68, abs=0.005) == total(given, weights(a_request(), POLICY))


@pytest.mark.parametrize(
    ("seconds", "success", "expected"),
    [
        pytest.param(0.0, Success(), 0.95, id="at once, no samples: 0.95"),
        pytest.param(5.0, Success(), 0.475, id="five seconds halve it"),
        pytest.param(45.0, Success(), 0.095, id="ten times responsive"),
        pytest.param(0.0, Success(ok=5, n=5), (5 + 4.75) / 10, id="samples weigh n / (n + 5)"),
        pytest.param(0.0, Success(ok=0, n=95), 4.75 / 100, id="all failed"),
    ],
)
def test_performance_is_success_times_how_soon(seconds, success, expected):
    assert pytest.approx(expected) == performance(taking(seconds), success, POLICY)


WEIGHTS = {
    ("simple", "balanced"): (0.2, 0.6, 0.2),
    ("simple", "speed"): (0.0, 0.8, 0.2),
    ("simple", "quality"): (0.4, 0.4, 0.2),
    ("moderate", "balanced"): (0.4, 0.4, 0.2),
    ("moderate", "speed"): (0.2, 0.6, 0.2),
    ("moderate", "quality"): (0.6, 0.2, 0.2),
    ("ambiguous", "balanced"): (0.4, 0.4, 0.2),
    ("complex", "balanced"): (0.6, 0.2, 0.2),
    ("complex", "speed"): (0.4, 0.4, 0.2),
    ("complex", "quality"): (0.8, 0.0, 0.2),
}


@pytest.mark.parametrize(("asked", "expected"), WEIGHTS.items(), ids=lambda one: str(one))
def test_weights_follow_complexity_and_what_the_caller_prefers(asked, expected):
    complexity, prefer = asked

    assert pytest.approx(expected) == weights(a_request(complexity=complexity, prefer=prefer), POLICY)


@pytest.mark.parametrize("complexity", COMPLEXITIES)
@pytest.mark.parametrize("prefer", ["speed", "balanced", "quality"])
@pytest.mark.parametrize("shift", [0.2, 0.9])
def test_weights_sum_to_one_and_none_is_negative(complexity, prefer, shift):
    found = weights(a_request(complexity=complexity, prefer=prefer), PolicySettings(prefer_shift_ratio=shift))

    assert pytest.approx(1.0) == sum(found)
    assert min(found) >= 0


@pytest.mark.parametrize("task", TASKS)
def test_every_task_says_what_it_needs_and_the_chain_is_an_order_of_capability(task):
    able = [capability(model.facts(), task) for model in DEFAULT_CHAIN]

    assert pytest.approx(1.0) == sum(TASK_NEEDS[task].values())
    assert sorted(able) == able
    assert all(0 <= one <= 1 for one in able)


def health_of(success: Success, **view) -> float:
    world = a_world(
        fleet=a_fleet(a_ready_view(LLAMA, **view)),
        profiles=some_profiles(success={("llama3.2:3b", "general"): success}),
    )
    return decide(a_request(), world, Settings(), NOW).chosen.scores.health


@pytest.mark.parametrize(
    ("success", "breaker", "expected"),
    [
        pytest.param(Success(), "closed", 1.0, id="healthy"),
        pytest.param(Success(), "half_open", 0.5, id="half open"),
        pytest.param(Success(ok=8, n=10), "closed", 0.5, id="below 0.9 over ten"),
        pytest.param(Success(ok=9, n=10), "closed", 1.0, id="0.9 is enough"),
        pytest.param(Success(ok=0, n=9), "closed", 1.0, id="nine samples prove nothing"),
    ],
)
def test_health_is_1_or_half(success, breaker, expected):
    assert expected == health_of(success, breaker=breaker)


def test_success_counts_per_task():
    world = a_world(
        fleet=a_fleet(a_ready_view(LLAMA)),
        profiles=some_profiles(success={("llama3.2:3b", "coding"): Success(ok=0, n=50)}),
    )

    assert 1.0 == decide(a_request(task="general"), world, Settings(), NOW).chosen.scores.health
    assert 0.5 == decide(a_request(task="coding"), world, Settings(), NOW).chosen.scores.health


def test_a_model_that_declares_nothing_is_neither_good_nor_bad():
    facts = DEFAULT_CHAIN[0].facts()
    bare = type(facts)(name="x", file_bytes=1, kv_bytes_per_token=1, context_max=4096)

    assert {0.5} == {round(capability(bare, task), 9) for task in TASKS}


def test_the_score_in_a_decision_is_the_weighted_sum_of_its_scores():
    decision = decide(a_request(), a_world(fleet=a_fleet(a_place_view(LLAMA))), Settings(), NOW)
    given = decision.chosen.scores

    assert pytest.approx(0.4 * given.capability + 0.4 * given.performance + 0.2 * given.health) == (
        decision.chosen.score
    )
