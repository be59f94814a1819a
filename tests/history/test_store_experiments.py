"""Experiments on the disk: each the whole of its state, and still there after whatever became of the file."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from dispatcher.experiments.lifetime import stopped
from dispatcher.vocabulary.experiment import ArmObserved, ArmSpecification, ExperimentTurned, Shadowed
from tests.builders import NOW
from tests.experiments.simulation import a_state
from tests.experiments.test_measure import after, an_observation
from tests.history.stores import an_open_store, rows


async def test_a_state_comes_back_as_it_went_in(path):
    state = after(an_observation(arm="A", shared=True, unit="digest"), an_observation(arm="B"))
    ended, _ = stopped(replace(a_state(id="ended"), started_at_seconds=NOW - 60), NOW)
    with an_open_store(path) as store:
        await store.record_experiment(state)
        store.owe_experiment(ended)
        await store.flush()
    with an_open_store(path) as store:
        assert [ended, state] == sorted(store.experiments(), key=lambda one: one.started_at_seconds)
    assert [("ended", NOW), ("x", None)] == rows(path, "SELECT id, stopped_at_seconds FROM experiment ORDER BY id")


async def test_weights_come_back_as_they_were_written(path):
    weights = ArmSpecification(policy={"weights_simple": (0.2, 0.7, 0.1)})
    with an_open_store(path) as store:
        await store.record_experiment(a_state(b=weights))
    with an_open_store(path) as store:
        assert [a_state(b=weights)] == store.experiments()


async def test_a_state_that_cannot_be_read_is_passed_over(path):
    with an_open_store(path) as store:
        await store.record_experiment(a_state())
        await store.record_experiment(a_state(id="y"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE experiment SET body = '{}' WHERE id = 'x'")
    with an_open_store(path) as store:
        assert ["y"] == [state.id for state in store.experiments()]


async def test_what_is_forgotten_is_gone(path):
    with an_open_store(path) as store:
        await store.record_experiment(a_state())
        store.forget_experiment("x")
        await store.flush()

        assert [] == store.experiments()


async def test_a_new_file_is_told_of_every_experiment_again(path):
    with an_open_store(path) as store:
        await store.record_experiment(a_state())
        path.unlink()
        await store.flush()
        store.tell_again(())
        await store.flush()
    with an_open_store(path) as store:
        assert [a_state()] == store.experiments()


async def test_turns_and_divergences_are_kept_and_what_the_state_has_is_not(path):
    def a_shadowed(divergence):
        return Shadowed(at_seconds=NOW, experiment_id="x", decision_id="d-1", divergence=divergence, model=None)

    with an_open_store(path) as store:
        store.append(
            ExperimentTurned(at_seconds=NOW, experiment_id="x", before="none", after="running", because="begun")
        )
        store.append(ArmObserved(at_seconds=NOW, experiment_id="x", arm="A"))
        store.append(a_shadowed("same"))
        store.append(a_shadowed("different_model"))
        await store.flush()

        assert 0 == store.dropped_total
    assert [("experiment_turned", None), ("shadowed", "d-1")] == rows(path, "SELECT kind, decision_id FROM event")
