"""What is done by the clock: a rehearsal teaches nothing that outlives it, and garbage costs nobody the start."""

from __future__ import annotations

import pytest

from dispatcher.clock import ManualClock
from dispatcher.control.tally import Tally
from dispatcher.daemon.slow_jobs import PEAKS, SEEN_REAL, SlowJobs
from dispatcher.history.store import Store
from dispatcher.vocabulary.event import Completed
from dispatcher.vocabulary.fleet import FleetView, Place
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, HistorySettings
from tests.builders import LLAMA, NOW, a_fleet, a_ready_view

SIMULATED = Place(server="rehearsal:llama3.2-3b", model="llama3.2:3b")


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "history.sqlite", HistorySettings(), ManualClock(NOW), lambda decision: b"{}")
    opened.open()
    yield opened
    opened.close()


def the_jobs(store: Store, fleet: list[FleetView]) -> tuple[SlowJobs, Tally]:
    tally = Tally({model.name: model.facts() for model in DEFAULT_CHAIN})
    jobs = SlowJobs(fleet=lambda: fleet[0], tally=tally, store=store, keep_pinned=lambda: None, clock=ManualClock(NOW))
    return jobs, tally


def an_answer(place: Place) -> Completed:
    return Completed(
        at_seconds=NOW,
        decision_id="d-1",
        model=place.model,
        place=place,
        task="general",
        agent="",
        status="ok",
        duration_seconds=5.0,
        prompt_tokens=100,
        output_tokens=100,
    )


def test_what_simulated_models_taught_ends_when_a_real_place_is_seen(store):
    fleet = [a_fleet(a_ready_view(SIMULATED), rehearsal=True)]
    jobs, tally = the_jobs(store, fleet)
    jobs.note_provider()
    tally.on_event(an_answer(SIMULATED), NOW)
    assert {} != tally.profiles(NOW).success and not store.flag(SEEN_REAL)

    fleet[0] = a_fleet(a_ready_view(LLAMA))
    jobs.note_provider()

    assert ({}, True) == (dict(tally.profiles(NOW).success), store.flag(SEEN_REAL))


async def test_a_rehearsal_leaves_no_footprint(store):
    simulated = a_ready_view(SIMULATED, measured_bytes=10**9, used_at_seconds=NOW)
    jobs, tally = the_jobs(store, [a_fleet(simulated, rehearsal=True)])

    await jobs.learn_peaks()

    assert ({}, None) == (dict(tally.profiles(NOW).peaks), store.recall(PEAKS))


async def test_a_model_that_worked_teaches_its_footprint_across_a_restart(store):
    view = a_ready_view(LLAMA, measured_bytes=10**9, used_at_seconds=NOW)
    jobs, _ = the_jobs(store, [a_fleet(view)])
    await jobs.learn_peaks()

    after, tally = the_jobs(store, [a_fleet(view)])
    after.recall()

    assert 10**9 == tally.profiles(NOW).peaks["llama3.2:3b", 4096, 1].value


def test_an_unreadable_footprint_is_learned_anew_and_stops_no_start(store):
    store.remember(PEAKS, "garbage{")
    jobs, tally = the_jobs(store, [a_fleet()])

    jobs.recall()

    assert {} == dict(tally.profiles(NOW).peaks)
