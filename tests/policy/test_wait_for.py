"""What is worth waiting for, and when asking again may help."""

from __future__ import annotations

import pytest

from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import GIB
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_place_view,
    a_ready_view,
    a_world,
)
from tests.policy.asking import decided, short_of_memory

LEASED_LLAMA = a_ready_view(LLAMA, leases=1, busy=True, leased_until_seconds=NOW + 42)


def test_a_named_model_that_only_leases_keep_out_is_worth_waiting_for():
    decision = decided(short_of_memory(LEASED_LLAMA, a_place_view(QWEN)), model="qwen2.5:7b")

    assert None is decision.chosen
    assert QWEN == decision.wait_for.place
    assert (LLAMA,) == decision.wait_for.rejection.blockers
    assert 42 == decision.retry_after_seconds


def test_nothing_is_waited_for_while_another_candidate_is_left_and_the_lease_is_named():
    decision = decided(short_of_memory(LEASED_LLAMA, a_place_view(QWEN)), complexity="complex")

    assert LLAMA == decision.chosen.place
    assert None is decision.wait_for
    assert "llama3.2:3b (2.6 GiB) is leased until 22:14:02" in decision.sentence


def test_a_reload_of_a_leased_place_is_waited_for_too():
    decision = decided(a_world(fleet=a_fleet(LEASED_LLAMA)), prompt_tokens=6000)

    assert None is decision.chosen
    assert (LLAMA, (LLAMA,)) == (decision.wait_for.place, decision.wait_for.rejection.blockers)


def test_of_several_that_wait_the_one_with_the_least_need_is_taken():
    views = (
        a_ready_view(PHI, leases=1, busy=True, leased_until_seconds=NOW + 9, budget_bytes=8 * GIB),
        a_place_view(QWEN),
        a_place_view(LLAMA),
    )
    decision = decided(short_of_memory(*views, available_gib=2.0), requires=frozenset({"tools"}))

    assert LLAMA == decision.wait_for.place


def test_a_busy_or_pinned_place_is_nothing_to_wait_for():
    for changes in ({"busy": True}, {"pinned": True, "leases": 1, "busy": True}):
        decision = decided(short_of_memory(a_ready_view(LLAMA, **changes), a_place_view(QWEN)), model="qwen2.5:7b")
        assert None is decision.wait_for


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        pytest.param(a_place_view(LLAMA, breaker="open"), 10, id="nothing to go by"),
        pytest.param(a_place_view(LLAMA, retry_at_seconds=NOW + 33), 33, id="its next try"),
        pytest.param(a_place_view(LLAMA, state=PlaceState.QUARANTINED, retry_at_seconds=NOW + 600), 120, id="at most"),
        pytest.param(a_place_view(LLAMA, retry_at_seconds=NOW + 0.2), 1, id="at least"),
    ],
)
def test_retry_after_is_when_asking_again_may_help(view, expected):
    assert expected == decided(a_world(fleet=a_fleet(view))).retry_after_seconds
