"""What experiments add to the exposition."""

from __future__ import annotations

import pytest

from dispatcher.vocabulary.experiment import ArmObserved, Shadowed
from exporter.collect import MAX_EXPERIMENTS
from tests.builders import NOW
from tests.exporter.worlds import a_turned_experiment

SAMPLES, ROLLBACKS = "dispatcher_experiment_samples_total", "dispatcher_experiment_rollbacks_total"


def test_an_experiments_series_are_there_at_zero_from_its_beginning(world):
    assert world.value(ROLLBACKS, experiment="margin") is None
    world.tell(a_turned_experiment())

    assert [0.0, 0.0] == [world.value(SAMPLES, experiment="margin", arm=arm) for arm in "AB"]
    assert 0.0 == world.value(ROLLBACKS, experiment="margin")


@pytest.mark.parametrize(("after", "count"), [("won", 0), ("rolled_back", 1), ("stopped", 0), ("lapsed", 0)])
def test_of_all_ends_only_a_rollback_counts(world, after, count):
    world.tell(a_turned_experiment(), a_turned_experiment(before="running", after=after))

    assert float(count) == world.value(ROLLBACKS, experiment="margin")


def test_outcomes_are_counted_by_arm_and_shadows_by_whether_they_came_out_the_same(world):
    observed = [ArmObserved(at_seconds=NOW, experiment_id="margin", arm=arm) for arm in "ABB"]
    found = ("same", "different_model", "different_verdict")
    shadows = [
        Shadowed(at_seconds=NOW, experiment_id="margin", decision_id="d-1", divergence=each, model=None)
        for each in found
    ]
    world.tell(*observed, *shadows)

    assert [1.0, 2.0] == [world.value(SAMPLES, experiment="margin", arm=arm) for arm in "AB"]
    same = [world.value("dispatcher_shadow_decisions_total", same=word) for word in ("true", "false")]
    assert [1.0, 2.0] == same


def test_names_beyond_all_reason_share_a_label(world):
    world.tell(*(a_turned_experiment(f"e-{number}") for number in range(MAX_EXPERIMENTS + 2)))

    assert 0.0 == world.value(ROLLBACKS, experiment="_other")
    assert world.value(ROLLBACKS, experiment=f"e-{MAX_EXPERIMENTS}") is None
