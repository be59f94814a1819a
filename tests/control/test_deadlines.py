from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.control.deadlines import MAX_PLACES, Deadlines, total_seconds
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.gateway_settings import TimeoutSettings
from tests.builders import LLAMA, NOW, PHI

RULES = TimeoutSettings()
DAY_SECONDS = 86400.0


def after(*firsts: float) -> Deadlines:
    deadlines = Deadlines()
    for seconds in firsts:
        deadlines.first(LLAMA, seconds, NOW)
    return deadlines


@pytest.mark.parametrize(
    ("firsts", "predicted", "expected"),
    [
        pytest.param((), None, 180.0, id="nothing known: as long as may be"),
        pytest.param((), 4.0, 12.0, id="only predicted"),
        pytest.param((8.0, 20.0, 4.0), None, 25.0, id="only history"),
        pytest.param((8.0, 20.0, 4.0), 2.0, 25.0, id="slower than predicted"),
        pytest.param((8.0, 20.0, 4.0), 30.0, 90.0, id="a prompt ten times longer than all before"),
        pytest.param((0.1,), 0.2, 5.0, id="never shorter than the least"),
        pytest.param((170.0,), 2.0, 180.0, id="never longer than the most"),
        pytest.param((), 1e9, 180.0, id="a prediction that cannot be"),
        pytest.param((), float("nan"), 180.0, id="a prediction that is no number"),
        pytest.param((float("nan"), -1.0, 1e9), 4.0, 12.0, id="measurements that cannot be"),
    ],
)
def test_the_first_content_is_given_the_longer_of_history_and_prediction(firsts, predicted, expected):
    assert expected == pytest.approx(after(*firsts).first_token_seconds(LLAMA, predicted, RULES, NOW))


def test_each_place_has_its_own_history():
    assert 12.0 == after(100.0).first_token_seconds(PHI, 4.0, RULES, NOW)


def test_a_slow_one_is_forgotten_after_a_hundred_others():
    deadlines = after(100.0, *[8.0] * 99)
    assert 125.0 == deadlines.first_token_seconds(LLAMA, None, RULES, NOW)

    deadlines.first(LLAMA, 8.0, NOW)
    assert 10.0 == deadlines.first_token_seconds(LLAMA, None, RULES, NOW)


def test_what_was_measured_a_week_ago_is_no_promise_any_more():
    deadlines = after(100.0)
    deadlines.first(LLAMA, 8.0, NOW + 4 * DAY_SECONDS)

    assert 125.0 == deadlines.first_token_seconds(LLAMA, None, RULES, NOW + 7 * DAY_SECONDS)
    assert 10.0 == deadlines.first_token_seconds(LLAMA, None, RULES, NOW + 8 * DAY_SECONDS)
    assert 180.0 == deadlines.first_token_seconds(LLAMA, None, RULES, NOW + 30 * DAY_SECONDS)


def test_a_place_that_times_out_is_given_more_each_time_up_to_the_most_and_less_again_when_it_answers():
    deadlines, given_seconds = after(8.0), []
    for _ in range(40):
        given_seconds.append(deadlines.first_token_seconds(LLAMA, 1.0, RULES, NOW))
        deadlines.first(LLAMA, given_seconds[-1], NOW)

    assert [10.0, 12.5, 15.625] == given_seconds[:3]
    assert 180.0 == given_seconds[-1]
    for _ in range(100):
        deadlines.first(LLAMA, 8.0, NOW)
    assert 10.0 == deadlines.first_token_seconds(LLAMA, 1.0, RULES, NOW)


def test_what_timed_out_gives_the_next_more_time_and_a_place_in_doubt_none():
    deadlines = after(8.0)
    deadlines.first(LLAMA, 100.0, NOW, came=False)

    assert 125.0 == deadlines.first_token_seconds(LLAMA, 1.0, RULES, NOW)
    assert 10.0 == deadlines.overdue_seconds(LLAMA, 1.0, RULES, NOW)


@pytest.mark.parametrize(
    ("wholes", "predicted", "expected"),
    [
        pytest.param((), None, 180.0, id="nothing known"),
        pytest.param((0.1,), 0.2, 5.0, id="never sooner"),
        pytest.param((8.0, 20.0), 2.0, 25.0, id="slower ones were seen"),
        pytest.param((8.0,), 100.0, 300.0, id="a long one is predicted"),
    ],
)
def test_a_whole_answer_is_overdue_when_ordinary_long_ones_have_come(wholes, predicted, expected):
    deadlines = after(60.0)
    for seconds in wholes:
        deadlines.whole(LLAMA, seconds, NOW)

    assert expected == pytest.approx(deadlines.whole_overdue_seconds(LLAMA, predicted, RULES, NOW))


@pytest.mark.parametrize(
    ("predicted", "stream", "expected"),
    [
        pytest.param(0.1, True, 8.0, id="first content: the slowest that came"),
        pytest.param(0.1, False, 20.0, id="an answer in one: the slowest of those"),
        pytest.param(30.0, True, 90.0, id="a prompt longer than all before"),
    ],
)
def test_what_is_hardly_ever_exceeded_is_the_slowest_seen_or_three_times_what_is_predicted(predicted, stream, expected):
    deadlines = after(8.0, 4.0)
    deadlines.first(LLAMA, 100.0, NOW, came=False)
    deadlines.whole(LLAMA, 20.0, NOW)

    assert expected == pytest.approx(deadlines.expected_seconds(LLAMA, predicted, NOW, stream=stream))
    assert 1.0 == deadlines.expected_seconds(PHI, 0.1, NOW, stream=stream), "nothing sooner is slow"


@pytest.mark.parametrize(
    ("pauses", "expected"),
    [
        pytest.param((), 30.0, id="nothing known"),
        pytest.param((0.8, 2.5, 1.0), 25.0, id="ten times the longest"),
        pytest.param((0.02,), 5.0, id="never shorter than the least"),
        pytest.param((9.0,), 60.0, id="never longer than the most"),
    ],
)
def test_the_next_piece_is_given_ten_times_the_longest_pause(pauses, expected):
    deadlines = Deadlines()
    for seconds in pauses:
        deadlines.pause(LLAMA, seconds, NOW)

    assert expected == deadlines.between_seconds(LLAMA, RULES, NOW)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        pytest.param(None, 190.0, id="not predicted"),
        pytest.param(20.0, 190.0, id="short"),
        pytest.param(100.0, 310.0, id="predicted to take longer than the setting"),
        pytest.param(float("nan"), 190.0, id="no number"),
    ],
)
def test_the_whole_is_given_its_time_after_the_first_content(predicted, expected):
    assert expected == total_seconds(10.0, predicted, RULES)


def test_only_so_many_places_are_remembered_the_most_recent_ones():
    deadlines = Deadlines()
    places = [Place(server=f"docker:{number}", model="m") for number in range(MAX_PLACES + 1)]
    for place in places:
        deadlines.first(place, 20.0, NOW)

    assert 180.0 == deadlines.first_token_seconds(places[0], None, RULES, NOW)
    assert 25.0 == deadlines.first_token_seconds(places[1], None, RULES, NOW)


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 3 * DAY_SECONDS)), max_size=250))
def test_it_is_the_slowest_of_the_last_hundred_younger_than_a_week(samples):
    deadlines, now, kept = Deadlines(), NOW, []
    for seconds, passes in samples:
        now += passes
        deadlines.first(LLAMA, seconds, now)
        kept = [*kept, (seconds, now)][-100:]
        slowest = max(one for one, at_seconds in kept if now - at_seconds <= 7 * DAY_SECONDS)
        expected = max(5.0, min(180.0, 1.25 * slowest))
        assert expected == deadlines.first_token_seconds(LLAMA, None, RULES, now)
