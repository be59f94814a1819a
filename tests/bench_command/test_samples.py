"""What counts for what: medians without outliers, p95 with them, cold and warm-up apart, unknown is None."""

from __future__ import annotations

import pytest

from dispatcher.bench.samples import Spread, outliers, quantile, summary
from tests.bench_command.aids import a_sample


def test_an_outlier_is_named_and_is_in_the_p95_but_not_in_the_median():
    usual = [a_sample(1.0 + at / 100, iteration=at) for at in range(5)]
    slow = a_sample(403.0, iteration=5, prompt="p1")

    told = summary("phi3:mini", [*usual, slow])

    assert [slow] == [each.sample for each in outliers([*usual, slow])]
    assert (1, 1.02, 6) == (told.outliers, told.seconds.median, told.seconds.n)
    assert told.seconds.p95 is not None and told.seconds.p95 > 100


def test_a_slow_prompt_is_no_outlier_among_quick_ones():
    quick = [a_sample(0.1, iteration=at) for at in range(5)]
    long = [a_sample(9.0, iteration=at, prompt="long") for at in range(5)]

    assert [] == outliers([*quick, *long])


def test_of_three_answers_none_is_an_outlier():
    assert [] == outliers([a_sample(0.1), a_sample(0.1), a_sample(9.0)])


def test_cold_answers_and_the_warm_up_are_in_no_statistic_of_warm_ones():
    cold = a_sample(30.0, cold=True, load_seconds=28.0, warming=True)

    told = summary("phi3:mini", [cold, a_sample(2.0, warming=True), a_sample(1.0)])

    assert (1, 1, 1, 1) == (told.asked, told.ok, told.warm, told.cold)
    assert (1.0, 30.0, 28.0) == (told.seconds.median, told.cold_seconds.median, told.load_seconds.median)


def test_a_failure_counts_even_in_the_warm_up_and_has_no_time():
    failed = [a_sample(5.0, cause="timeout"), a_sample(0.1, cause="connect", warming=True)]

    told = summary("phi3:mini", [*failed, a_sample(1.0)])

    assert (3, 1, {"connect": 1, "timeout": 1}) == (told.asked, told.ok, told.errors)
    assert pytest.approx(1 / 3) == told.success_ratio
    assert 1.0 == told.seconds.p95


def test_of_nothing_measured_nothing_is_known():
    told = summary("phi3:mini", [])

    assert (None, Spread(), {}) == (told.success_ratio, told.seconds, told.task_seconds)


def test_a_quantile_lies_between_the_two_next_values():
    assert (None, 7.0, 3.0, 1.2) == (
        quantile([], 0.5),
        quantile([7.0], 0.95),
        quantile([5.0, 1.0, 3.0], 0.5),
        quantile([1.0, 2.0, 3.0], 0.1),
    )
