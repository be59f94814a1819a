from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.control.breaker import (
    CLOSED,
    NO_PROBE,
    Breaker,
    BreakerState,
    as_of,
    failed,
    passed,
    probed,
    refusal,
    released,
    retry_at_seconds,
)
from dispatcher.vocabulary.gateway_settings import BreakerSettings

RULES = BreakerSettings()
T = 1_700_000_000.0


def opened(at_seconds: float = T) -> Breaker:
    breaker = CLOSED
    for _ in range(RULES.failures_in_row):
        breaker = failed(breaker, at_seconds, "no connection", RULES)
    return breaker


def test_five_failures_in_a_row_open_it_and_the_refusal_says_why_and_for_how_long():
    breaker = opened()

    assert BreakerState.OPEN is breaker.state
    expected = "its breaker is open for another 20 s: 5 failures in a row, the last: no connection"
    assert expected == refusal(breaker, T + 10, RULES)


def test_four_failures_and_a_pass_leave_it_closed():
    breaker = CLOSED
    for _ in range(3):
        for _ in range(RULES.failures_in_row - 1):
            breaker = failed(breaker, T, "reset", replace(RULES, window_min_requests=1000))
        breaker = passed(breaker, T, RULES)

    assert BreakerState.CLOSED is breaker.state
    assert refusal(breaker, T, RULES) is None


def test_half_of_ten_requests_within_a_minute_open_it_although_never_five_in_a_row():
    breaker = CLOSED
    for second in range(10):
        ended = passed if second % 2 == 0 else None
        at = T + second
        breaker = ended(breaker, at, RULES) if ended else failed(breaker, at, "503", RULES)

    assert BreakerState.OPEN is breaker.state
    assert "5 of 10 requests failed within 60 s, the last: 503" == breaker.because


def test_what_happened_longer_ago_than_the_window_does_not_count():
    breaker = CLOSED
    for index in range(4):
        breaker = failed(breaker, T + index, "503", RULES)
    breaker = passed(breaker, T + 5, RULES)
    for _ in range(5):
        breaker = passed(breaker, T + 75, RULES)
    breaker = failed(breaker, T + 76, "503", RULES)

    assert BreakerState.CLOSED is breaker.state


def test_after_its_cool_off_one_probe_at_a_time_is_let_through():
    half = as_of(T + 30, opened(), RULES)

    assert BreakerState.HALF_OPEN is half.state
    assert refusal(half, T + 30, RULES) is None
    out, _ = probed(half, T + 30, T + 40)
    assert "its breaker is half open, and the one probe is out" == refusal(out, T + 31, RULES)
    assert refusal(out, T + 40, RULES) is None  # a probe nobody heard of again does not hold it for ever


def test_a_probe_that_says_nothing_of_the_place_makes_room_for_the_next():
    out, probe = probed(as_of(T + 30, opened(), RULES), T + 30, T + 100)

    assert refusal(released(out, probe), T + 31, RULES) is None


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda breaker, probe: released(breaker, probe), id="a client left"),
        pytest.param(lambda breaker, probe: passed(breaker, T + 31, RULES, probe), id="answered"),
        pytest.param(lambda breaker, probe: failed(breaker, T + 31, "reset", RULES, probe), id="failed"),
    ],
)
def test_only_the_probes_own_end_moves_a_half_open_breaker(end):
    out, probe = probed(as_of(T + 30, opened(), RULES), T + 30, T + 100)

    assert out == end(out, NO_PROBE)  # of a request that was under way when it opened
    assert out == end(out, probe + 1)
    assert out != end(out, probe)
    once, twice = end(out, probe), end(end(out, probe), probe)
    assert (once.state, once.passes, once.openings) == (twice.state, twice.passes, twice.openings)


def test_a_request_that_comes_while_the_probe_is_out_is_none():
    out, probe = probed(as_of(T + 30, opened(), RULES), T + 30, T + 40)

    assert (out, NO_PROBE) == probed(out, T + 35, T + 90)
    assert (replace(out, probing_until_seconds=T + 90), probe) == probed(out, T + 35, T + 90, probe)  # a claim, used


def test_a_probe_that_was_given_up_no_longer_speaks_for_the_place():
    out, lost = probed(as_of(T + 30, opened(), RULES), T + 30, T + 40)
    out, probe = probed(out, T + 41, T + 80)

    assert lost != probe
    assert out == failed(out, T + 42, "silent", RULES, lost)
    assert (out, NO_PROBE) == probed(out, T + 42, T + 99, lost)


def test_two_probes_in_a_row_close_it_and_forget_how_often_it_opened():
    breaker = as_of(T + 30, opened(), RULES)
    breaker, probe = probed(breaker, T + 30, T + 40)
    breaker = passed(breaker, T + 31, RULES, probe)
    assert BreakerState.HALF_OPEN is breaker.state
    breaker, probe = probed(breaker, T + 31, T + 41)
    breaker = passed(breaker, T + 32, RULES, probe)

    assert BreakerState.CLOSED is breaker.state
    assert 0 == breaker.openings


@pytest.mark.parametrize(("openings", "wait_seconds"), [(1, 30.0), (2, 60.0), (9, 270.0), (10, 300.0), (40, 300.0)])
def test_each_probe_that_fails_makes_the_next_cool_off_longer_up_to_a_bound(openings, wait_seconds):
    breaker, now = opened(), T
    for _ in range(openings - 1):
        now = retry_at_seconds(breaker, RULES)
        breaker, probe = probed(as_of(now, breaker, RULES), now, now + 5)
        breaker = failed(breaker, now, "silent", RULES, probe)

    assert wait_seconds == pytest.approx(retry_at_seconds(breaker, RULES) - now)


def test_a_request_that_was_under_way_when_it_opened_neither_opens_it_again_nor_prolongs_it():
    breaker = opened()

    assert retry_at_seconds(breaker, RULES) == retry_at_seconds(failed(breaker, T + 20, "reset", RULES), RULES)


@given(st.lists(st.tuples(st.sampled_from(["pass", "fail", "wait"]), st.floats(0, 400)), max_size=80))
def test_whatever_happens_it_lets_a_probe_through_within_five_minutes(story):
    breaker, now = CLOSED, T
    for what, seconds in story:
        now += seconds
        breaker = as_of(now, breaker, RULES)
        if refusal(breaker, now, RULES) is None and what != "wait":
            breaker, probe = probed(breaker, now, now + 30)
            if what == "pass":
                breaker = passed(breaker, now, RULES, probe)
            else:
                breaker = failed(breaker, now, "x", RULES, probe)

    later = now + RULES.open_max_seconds
    assert refusal(as_of(later, breaker, RULES), later, RULES) is None
    assert len(breaker.recent) <= 6
