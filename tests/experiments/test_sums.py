from __future__ import annotations

import random
from statistics import fmean, stdev, variance

import pytest

from dispatcher.experiments.sums import BUCKETS, added, bucket_of, effective_units, mean, spread_with, variance_of_mean
from dispatcher.vocabulary.experiment import Spread, Sums


def summed(losses, units=None) -> Sums:
    sums = Sums()
    for place, loss in enumerate(losses):
        sums = added(sums, loss, units[place] if units else str(place), shared=units is not None)
    return sums


def test_nothing_has_no_mean_and_no_variance():
    assert (None, None, 0.0) == (mean(Sums()), variance_of_mean(Sums()), effective_units(Sums()))


def test_one_unit_has_a_mean_and_cannot_differ_from_itself():
    assert (3.0, None) == (mean(summed([3.0])), variance_of_mean(summed([3.0])))


@pytest.mark.parametrize(("level", "deviation"), [(0.0, 1.0), (9.2, 1e-3), (-1e6, 1e-2), (1e9, 1.0)])
def test_where_every_request_is_a_unit_the_variance_is_the_textbooks_however_far_from_zero_the_values_lie(
    level, deviation
):
    chance = random.Random(1)
    losses = [chance.gauss(level, deviation) for _ in range(20_000)]
    sums = summed(losses)

    assert pytest.approx(fmean(losses), rel=1e-12) == mean(sums)
    assert pytest.approx(variance(losses) / len(losses), rel=1e-6) == variance_of_mean(sums)


def test_an_agents_requests_are_one_unit():
    """Ten agents with one value each, a hundred times: nothing is known beyond the ten."""
    chance = random.Random(2)
    units = [f"agent {number}" for number in range(200)]
    units = list({bucket_of(unit): unit for unit in units}.values())[:10]  # no two in one bucket
    levels = {unit: chance.gauss(0, 1) for unit in units}
    once, often = summed(levels.values()), summed(list(levels.values()) * 100, units * 100)

    assert pytest.approx(10.0) == effective_units(often)
    assert pytest.approx(variance_of_mean(once)) == variance_of_mean(often)


def test_a_loud_agent_counts_for_little_more_than_itself():
    units = ["loud"] * 900 + [f"quiet {number}" for number in range(50)]

    assert effective_units(summed([0.0] * len(units), units)) < 2


def test_the_state_does_not_grow_with_the_number_of_agents():
    units = [f"agent {number}" for number in range(5_000)]
    sums = summed([1.0] * 5_000, units)

    assert BUCKETS == len(sums.clusters)
    assert 200 < effective_units(sums) <= BUCKETS


def test_any_text_names_a_unit():
    assert all(0 <= bucket_of(unit) < BUCKETS for unit in ("", "日報", "\udc80", "\0", "a" * 10_000))


def test_welfords_step_is_the_two_passes():
    chance = random.Random(3)
    values = [chance.gauss(1e6, 0.01) for _ in range(5_000)]
    spread = Spread()
    for value in values:
        spread = spread_with(spread, value)

    assert pytest.approx(fmean(values), rel=1e-14) == spread.mean
    assert pytest.approx(stdev(values), rel=1e-5) == (spread.deviations / (spread.n - 1)) ** 0.5
