"""What the gateway's own ends teach: each bad attempt once, each good answer once, and nothing else."""

from __future__ import annotations

import pytest

from dispatcher.control.speeds import SETTLED_SAMPLES
from dispatcher.control.tally import SETTLED_EVERY_SECONDS, Tally
from dispatcher.policy.decide import decide
from dispatcher.vocabulary.event import STATUSES
from dispatcher.vocabulary.profile import Measured, Success
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, Settings
from tests.builders import LLAMA, NOW, PHI, a_fleet, a_ready_view, a_request, a_world
from tests.control.test_tally import a_tally, rates, timed
from tests.history.some_events import a_completed, a_decided, a_failed, a_relayed_end

PHI_MODEL, LLAMA_MODEL = PHI.model, LLAMA.model


def success(tally: Tally) -> dict[str, Success]:
    return {model: told for (model, task), told in tally.profiles(NOW).success.items() if task == "coding"}


def samples(tally: Tally) -> dict[str, tuple[int, float | None]]:
    return {one.model: (one.samples, one.success_ratio) for one in tally.records(NOW)}


def test_a_rescued_request_counts_once_where_it_failed_and_once_where_it_was_answered():
    tally = a_tally(a_failed(PHI), a_relayed_end(place=LLAMA))

    assert {PHI_MODEL: Success(ok=0, n=1), LLAMA_MODEL: Success(ok=1, n=1)} == success(tally)
    assert {PHI_MODEL: (1, 0.0), LLAMA_MODEL: (1, 1.0)} == samples(tally)


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_a_request_that_failed_for_good_counts_once_per_attempt_and_not_again_for_itself(status):
    tally = a_tally(a_failed(PHI), a_failed(LLAMA), a_relayed_end(place=LLAMA, status=status))

    assert {PHI_MODEL: Success(ok=0, n=1), LLAMA_MODEL: Success(ok=0, n=1)} == success(tally)
    assert {PHI_MODEL: (1, 0.0), LLAMA_MODEL: (1, 0.0)} == samples(tally)


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "ok"])
def test_an_end_of_the_gateway_teaches_no_more_than_its_attempts(status):
    tally = a_tally(a_relayed_end(status=status, duration_seconds=60.0))

    assert ({}, {}, {}) == (success(tally), samples(tally), tally.profiles(NOW).rates)


@pytest.mark.parametrize("cause", ["caller_error", "busy", "context_exceeded"])
def test_an_attempt_that_tells_against_the_request_says_nothing_of_its_place(cause):
    tally = a_tally(a_failed(PHI, cause, fails_place=False), a_relayed_end(place=PHI, status="error"))

    assert ({}, {}, {}) == (success(tally), samples(tally), tally.profiles(NOW).rates)


def test_what_a_caller_reports_still_teaches_both_ways():
    tally = a_tally(a_completed("1", status="error"), a_completed("2"), a_completed("3", status="timeout"))

    assert {LLAMA_MODEL: Success(ok=1, n=3)} == success(tally)


def test_an_answer_from_the_cache_teaches_nothing_of_the_model_it_once_came_from():
    tally = a_tally(a_relayed_end(place=None, model=LLAMA_MODEL, duration_seconds=0.0004))

    assert ({}, {}, {}) == (success(tally), samples(tally), tally.profiles(NOW).rates)


@pytest.mark.parametrize(("cause", "expected"), [("silent", 27.0), ("stalled", 27.0), ("reset", 8.0)])
def test_an_attempt_nobody_waited_out_took_at_least_so_long_and_one_that_broke_took_no_time(cause, expected):
    good = [a_relayed_end(str(number), duration_seconds=8.0) for number in range(3)]
    tally = a_tally(*good, *(a_failed(cause=cause, seconds=27.0) for _ in range(4)))

    assert expected == rates(tally).request_seconds.value


def test_a_place_that_fails_fast_beside_a_healthy_one_attracts_nothing():
    events = []
    for number in range(40):  # phi answers with an error at once; llama rescues, and takes its time
        at_seconds = NOW + number
        events += [
            a_failed(PHI, seconds=0.001, task="general", at_seconds=at_seconds),
            a_relayed_end(str(number), task="general", duration_seconds=4.0, at_seconds=at_seconds),
        ]
    tally, now = a_tally(*events), NOW + 60
    fleet = a_fleet(a_ready_view(PHI), a_ready_view(LLAMA))
    world = a_world(fleet=fleet, profiles=tally.profiles(now))
    chosen = [decide(a_request(id=f"d-{number}"), world, Settings(), now).chosen for number in range(50)]

    assert Success(ok=0, n=40) == tally.profiles(now).success[PHI_MODEL, "general"]
    assert PHI not in tally.profiles(now).rates
    assert {LLAMA} == {one.place for one in chosen if one is not None}


def test_failures_beyond_the_window_are_forgotten_one_by_one():
    tally = a_tally(*(a_failed() for _ in range(100)), *(a_relayed_end() for _ in range(30)))

    assert {LLAMA_MODEL: Success(ok=30, n=100)} == success(tally)


def test_failures_fade_as_samples_do():
    tally = a_tally(*(a_failed() for _ in range(20)))

    told = tally.profiles(NOW + 9 * 86400.0).success[LLAMA_MODEL, "coding"]
    assert Success(ok=0, n=10) == told


def test_a_failed_attempt_of_a_stranger_teaches_nothing():
    tally = Tally({model.name: model.facts() for model in DEFAULT_CHAIN if model.name != PHI_MODEL})
    tally.on_event(a_failed(PHI, "silent", seconds=9.0), NOW)

    assert ({}, {}, ()) == (tally.profiles(NOW).success, tally.profiles(NOW).rates, tally.records(NOW))


def test_where_the_engine_tells_no_durations_the_rate_is_over_what_followed_the_first_token():
    seen = a_relayed_end(output_tokens=41, prompt_tokens=900, duration_seconds=5.0, first_token_seconds=3.0)
    tally = a_tally(seen)
    record = tally.records(NOW)[0]

    assert Measured(value=20.0, n=1) == rates(tally).decode_tokens_per_second
    assert (3.0, 20.0) == (record.first_token_seconds, record.tokens_per_second)


def test_the_engines_durations_come_before_what_the_gateway_saw():
    tally = a_tally(timed(25.0, relayed=True, first_token_seconds=7.9, duration_seconds=8.0))

    assert Measured(value=25.0, n=1) == rates(tally).decode_tokens_per_second


@pytest.mark.parametrize("first_token_seconds", [5.0, 6.0, float("nan")])
def test_a_first_token_that_left_no_time_for_others_teaches_no_rate(first_token_seconds):
    tally = a_tally(a_relayed_end(output_tokens=41, duration_seconds=5.0, first_token_seconds=first_token_seconds))

    assert 0 == rates(tally).decode_tokens_per_second.n


def test_a_fallback_is_no_second_want():
    tally = a_tally(a_decided("d-1"), a_decided("d-2", PHI, outcome="fallback"))

    wanted = tally.profiles(NOW).wanted_per_second
    assert (True, 0.0) == (wanted[LLAMA_MODEL] > 0, wanted[PHI_MODEL])


# ── reading is cheap ──


def test_a_settled_place_is_read_again_once_in_a_while_and_not_for_every_request():
    tally = a_tally(*(timed(20.0, prompt_tokens=500 + number) for number in range(SETTLED_SAMPLES)))
    before = rates(tally)
    for _ in range(3 * SETTLED_SAMPLES):
        tally.on_event(timed(40.0), NOW)
    soon, later = (rates(tally, now_seconds=NOW + share * SETTLED_EVERY_SECONDS) for share in (0.5, 2.0))

    assert before == soon
    assert Measured(value=40.0, n=4 * SETTLED_SAMPLES) == later.decode_tokens_per_second


def test_what_decides_whether_a_place_is_worth_anything_is_read_at_once():
    tally = a_tally(*(a_relayed_end() for _ in range(3 * SETTLED_SAMPLES)))
    tally.profiles(NOW)
    tally.on_event(a_failed(), NOW)

    assert {LLAMA_MODEL: Success(ok=60, n=61)} == success(tally)
