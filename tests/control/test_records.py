"""What people may read of how the models have done."""

from __future__ import annotations

import pytest

from dispatcher.control.records import MAX_KEYS, Records, quantile
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.profile import Record
from tests.builders import NOW, QWEN
from tests.history.some_events import a_completed

DAY = 86400.0


def recorded(*events, now: float = NOW) -> tuple[Record, ...]:
    records = Records()
    for event in events:
        records.add(event)
    return records.told(now)


def test_a_record_is_kept_per_model_task_and_agent_over_all_places():
    other = Place(server="docker:llama-2", model="llama3.2:3b")

    told = recorded(
        a_completed("1"),
        a_completed("2", other),
        a_completed("3", agent="mail"),
        a_completed("4", QWEN, task="general"),
    )

    expected = [
        ("llama3.2:3b", "coding", "digest", 2),
        ("llama3.2:3b", "coding", "mail", 1),
        ("qwen2.5:7b", "general", "digest", 1),
    ]
    assert expected == [(one.model, one.task, one.agent, one.samples) for one in told]


def test_durations_successes_and_quality_are_those_reported():
    told = recorded(
        *(a_completed(str(i), duration_seconds=float(i), quality=8.0) for i in range(1, 21)),
        a_completed("e", status="error", duration_seconds=500.0, quality=2.0),
        a_completed("c", status="cancelled", duration_seconds=500.0),
    )[0]

    assert (21, pytest.approx(20 / 21)) == (told.samples, told.success_ratio)
    assert (10.5, 10.0, 19.0) == (told.mean_seconds, told.p50_seconds, told.p95_seconds)
    assert pytest.approx((20 * 8 + 2) / 21) == told.quality


def test_a_timeout_counts_as_at_least_its_timeout():
    told = recorded(a_completed(status="timeout", duration_seconds=60.0))[0]

    assert (0.0, 60.0, None) == (told.success_ratio, told.p95_seconds, told.tokens_per_busy_second)


def test_with_the_engines_durations_first_token_speed_and_efficiency_leave_the_waiting_out():
    timings = Timings(
        total_seconds=12.0,
        load_seconds=1.0,
        prompt_eval_seconds=2.0,
        eval_seconds=5.0,
        prompt_tokens=300,
        output_tokens=101,
    )

    told = recorded(a_completed(timings=timings, duration_seconds=12.0))[0]

    assert (7.0, 20.0, pytest.approx(101 / 8)) == (
        told.first_token_seconds,
        told.tokens_per_second,
        told.tokens_per_busy_second,
    )


def test_what_a_caller_cannot_know_is_unknown_and_its_efficiency_is_over_all_it_waited():
    told = recorded(a_completed(output_tokens=80, duration_seconds=8.0))[0]

    assert (None, None, 10.0) == (told.first_token_seconds, told.tokens_per_second, told.tokens_per_busy_second)


def test_one_answer_of_403_s_is_counted_as_an_outlier_and_moves_neither_mean_nor_efficiency_far():
    usual = [a_completed(str(i), output_tokens=40, duration_seconds=4.0 + i / 10) for i in range(11)]

    told = recorded(*usual, a_completed("stall", output_tokens=40, duration_seconds=403.0))[0]

    assert (1, 4.5, 403.0) == (told.outliers, told.p50_seconds, told.p95_seconds)
    assert (pytest.approx(5.6, abs=0.1), pytest.approx(7.1, abs=0.1)) == (
        told.mean_seconds,
        told.tokens_per_busy_second,
    )


def test_nothing_is_an_outlier_while_too_little_is_known_nor_what_only_is_a_longer_answer():
    few = recorded(
        *(a_completed(str(i), duration_seconds=seconds) for i, seconds in enumerate((4.0, 4.0, 4.0, 403.0)))
    )[0]
    long = recorded(*(a_completed(str(i), duration_seconds=15.0 if i == 9 else 4.0) for i in range(10)))[0]

    assert (0, 0) == (few.outliers, long.outliers)


def test_only_the_last_hundred_count_and_old_ones_fade():
    many = recorded(*(a_completed(str(i), duration_seconds=1.0 if i < 100 else 9.0) for i in range(200)))[0]
    old = recorded(a_completed(at_seconds=NOW - 60 * DAY))[0]

    assert (100, 9.0) == (many.samples, many.mean_seconds)
    assert (0, None) == (old.samples, old.success_ratio)


@pytest.mark.parametrize("absurd", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_cannot_be_is_no_measurement(absurd):
    told = recorded(a_completed(duration_seconds=absurd, output_tokens=10**400, quality=absurd))[0]

    assert (1, None, None, None, None) == (
        told.samples,
        told.mean_seconds,
        told.p95_seconds,
        told.tokens_per_busy_second,
        told.quality,
    )


def test_agents_are_named_by_callers_and_bounded_the_longest_silent_goes_first():
    records = Records()
    for i in range(MAX_KEYS):
        records.add(a_completed(str(i), agent=f"a{i}"))
    records.add(a_completed("again", agent="a0"))
    records.add(a_completed("new", agent="new"))

    agents = {one.agent for one in records.told(NOW)}
    assert (MAX_KEYS, True, False, True) == (len(agents), "a0" in agents, "a1" in agents, "new" in agents)


def test_a_quantile_is_a_value_that_was_measured_and_of_nothing_none():
    assert (1.0, 3.0, None) == (
        quantile([(1.0, 1.0)], 0.95),
        quantile([(1.0, 1.0), (3.0, 9.0)], 0.5),
        quantile([], 0.5),
    )
