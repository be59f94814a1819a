from __future__ import annotations

from typing import get_args

import pytest

from dispatcher.control.retry import HANDLING, Budget, counted, delay_seconds, left, used_ratio
from dispatcher.vocabulary.relay import Cause

T = 1_700_000_000.0


def test_every_cause_has_its_handling():
    assert set(get_args(Cause)) == set(HANDLING)


@pytest.mark.parametrize("cause", ["caller_error", "wrong_option"])
def test_what_is_the_callers_fault_is_neither_repeated_nor_moved_nor_counted(cause):
    handling = HANDLING[cause]

    assert (False, False, False) == (handling.fails_place, handling.same_again, handling.moves_on)


@pytest.mark.parametrize("cause", ["busy", "memory", "rate_limited", "not_found", "context_exceeded"])
def test_what_another_model_may_answer_moves_on_without_blaming_the_place(cause):
    handling = HANDLING[cause]

    assert (False, False, True) == (handling.fails_place, handling.same_again, handling.moves_on)


def test_one_repeat_is_always_allowed_and_a_fifth_of_the_requests_beyond():
    assert 1.0 == left(Budget(), T, 0.2)
    budget = counted(Budget(), T, requests=100)

    assert 20.0 == left(budget, T, 0.2)
    assert 18.0 == left(counted(budget, T + 1, repeats=2), T + 1, 0.2)


def test_an_outage_does_not_turn_every_request_into_two():
    budget, repeats = Budget(), 0
    for index in range(1000):
        now = T + index * 0.01
        budget = counted(budget, now, requests=1)
        if left(budget, now, 0.2) >= 1:
            budget, repeats = counted(budget, now, repeats=1), repeats + 1

    assert 200 == repeats
    assert 1.0 == used_ratio(budget, T + 10, 0.2)


def test_what_is_older_than_the_window_is_forgotten():
    budget = counted(Budget(), T, requests=100, repeats=20)

    assert 1.0 == left(budget, T + 31, 0.2)
    assert 0.0 == used_ratio(budget, T + 31, 0.2)
    assert 1 == len(counted(budget, T + 31, requests=1).buckets)


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.2), (2, 0.4), (3, 0.8), (10, 5.0)])
def test_the_wait_before_a_repeat_doubles_up_to_a_bound_with_full_jitter(attempt, longest):
    assert 0.0 == delay_seconds(attempt, 0.0, 0.2, 5.0)
    assert longest == pytest.approx(delay_seconds(attempt, 1.0, 0.2, 5.0))
