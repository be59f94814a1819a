from __future__ import annotations

from math import exp, inf, sqrt

import pytest

from dispatcher.experiments.evidence import (
    MIN_UNITS,
    TAU,
    Comparison,
    comparison,
    half_width,
    one_sided_p,
    two_sided_p,
)
from dispatcher.experiments.sums import variance_of_mean
from dispatcher.vocabulary.experiment import METRICS
from tests.experiments.test_sums import summed


def differing(delta: float, variance: float) -> Comparison:
    return Comparison(delta=delta, variance=variance)


def errors(wrong: int, n: int):
    return summed([1.0] * wrong + [0.0] * (n - wrong))


def test_the_scales_of_the_effects_looked_for():
    assert {"success": 0.03, "log_latency": 0.2, "quality": 0.1} == dict(TAU)


@pytest.mark.parametrize(("delta", "variance", "tau"), [(0.05, 4e-4, 0.03), (-0.3, 0.01, 0.2), (0.2, 1e-3, 0.1)])
def test_the_p_value_is_the_formula_to_the_letter(delta, variance, tau):
    ratio = sqrt(variance / (variance + tau**2))
    ratio *= exp(tau**2 * delta**2 / (2 * variance * (variance + tau**2)))

    assert pytest.approx(min(1.0, 1 / ratio)) == two_sided_p(differing(delta, variance), tau)


def test_one_sided_it_is_the_mixture_over_harms_alone():
    """∫ of the likelihood ratio over a half-normal Δ, done by numbers."""
    delta, variance, tau = 0.05, 4e-4, 0.03
    steps = [(index + 0.5) * tau * 8 / 20_000 for index in range(20_000)]
    width = tau * 8 / 20_000
    mixture = sum(
        2 * exp(-(d**2) / (2 * tau**2)) / (tau * sqrt(6.283185307179586))
        * exp(delta * d / variance - d**2 / (2 * variance))
        for d in steps
    )  # fmt: skip

    assert pytest.approx(1 / (mixture * width), rel=1e-6) == one_sided_p(differing(delta, variance), tau)


def test_an_improvement_never_breaks_a_guardrail():
    assert [1.0] * 4 == [one_sided_p(differing(delta, 1e-4), 0.03) for delta in (0.0, -0.01, -0.1, -50.0)]


def test_a_harm_well_seen_has_half_the_p_value():
    found = differing(0.2, 1e-4)

    assert pytest.approx(two_sided_p(found, 0.03) / 2) == one_sided_p(found, 0.03)


def test_a_tolerated_harm_is_none():
    assert one_sided_p(differing(0.05, 1e-5), 0.03) < 1e-6
    assert 1.0 == one_sided_p(differing(0.05, 1e-5), 0.03, tolerance=0.05)


@pytest.mark.parametrize("delta", [1e3, -1e3, 1e150])
def test_no_difference_is_too_large_to_compute(delta):
    assert 0.0 == two_sided_p(differing(delta, 1e-6), 0.03)


@pytest.mark.parametrize("metric", METRICS)
def test_fewer_than_thirty_units_in_either_arm_compare_nothing(metric):
    enough, few = errors(0, MIN_UNITS), errors(0, MIN_UNITS - 1)

    assert 30 == MIN_UNITS
    assert [None, None] == [comparison(metric, enough, few), comparison(metric, few, enough)]
    assert comparison(metric, enough, enough) is not None


def test_thirty_requests_of_five_agents_are_five_units():
    of_agents = summed([0.0] * 300, [f"agent {number % 5}" for number in range(300)])

    assert comparison("success", of_agents, errors(0, 300)) is None


@pytest.mark.parametrize("metric", METRICS)
def test_no_variance_at_all_is_not_certainty(metric):
    """Thirty without an error, all alike: V of the textbook is 0, and anything would follow from it."""
    found = comparison(metric, errors(0, 30), errors(0, 30))

    assert found is not None
    assert found.variance > 0
    assert 1.0 == two_sided_p(found, TAU[metric])


@pytest.mark.parametrize(("wrong", "n"), [(1, 30), (2, 30), (2, 60)])
def test_a_first_error_in_a_small_arm_breaks_nothing_beside_a_large_one_without(wrong, n):
    for large in (30, 270, 3_000):
        found = comparison("success", errors(0, large), errors(wrong, n))

        assert found is not None
        assert one_sided_p(found, TAU["success"]) > 0.1
        assert two_sided_p(found, TAU["success"]) > 0.05


@pytest.mark.parametrize(("wrong", "large"), [(14, 270), (50, 1_000)])
def test_a_small_arm_without_an_error_yet_has_not_won_against_a_large_one_with_some(wrong, large):
    """At 5 % one in twenty arms of 60 has none: by its own rate alone it would be sure of itself."""
    found = comparison("success", errors(wrong, large), errors(0, 60))

    assert found is not None
    assert two_sided_p(found, TAU["success"]) > 0.05


def test_a_small_arm_without_a_bad_answer_yet_takes_its_variance_from_both():
    """Quality of 9 or so, and every thirtieth answer a failure; none of B's 31 was. By itself it would be a winner."""
    a = summed([0.05 + 0.1 * (number % 2) if number % 30 else 1.0 for number in range(279)])
    b = summed([0.05 + 0.1 * (number % 2) for number in range(31)])
    found, own_b = comparison("quality", a, b), variance_of_mean(b)

    assert found is not None and own_b is not None
    assert found.variance > 5 * own_b
    assert two_sided_p(found, TAU["quality"]) > 0.3


@pytest.mark.parametrize(("wrong_b", "rate_b"), [(0, 5.5 / 361), (2, 2.5 / 61)])
def test_a_success_varies_as_at_its_own_rate_or_that_of_both_arms_whichever_is_more(wrong_b, rate_b):
    """Each with half an error and half a success added. The large arm's own variance is s² / n."""
    found = comparison("success", errors(5, 300), errors(wrong_b, 60))
    a_rate = max((5.5 + wrong_b) / 361, 5.5 / 301)

    assert found is not None
    assert pytest.approx(a_rate * (1 - a_rate) / 300 + rate_b * (1 - rate_b) / 60) == found.variance


def test_a_catastrophe_is_seen_within_a_hundred():
    found = comparison("success", errors(2, 100), errors(30, 100))

    assert found is not None
    assert one_sided_p(found, TAU["success"]) < 0.1


def test_the_interval_ends_where_the_test_begins_to_see_a_difference():
    variance, tau = 3e-4, 0.03
    width = half_width(differing(0.0, variance), tau)

    assert pytest.approx(0.05) == two_sided_p(differing(width, variance), tau)
    assert inf == half_width(differing(0.0, inf), tau)
