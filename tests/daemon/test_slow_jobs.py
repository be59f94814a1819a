"""What is done by the clock: a rehearsal teaches nothing that outlives it, and garbage costs nobody the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dispatcher.clock import ManualClock
from dispatcher.control.tally import Tally
from dispatcher.daemon.slow_jobs import LAST_PROVIDER, PEAKS, SEEN_REAL, SlowJobs
from dispatcher.errors import NotNow
from dispatcher.history.store import Store
from dispatcher.vocabulary.event import Completed
from dispatcher.vocabulary.fleet import FleetView, Place
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, HistorySettings
from dispatcher.vocabulary.signal import Reading, Snapshot
from tests.builders import LLAMA, NOW, a_fleet, a_reading, a_ready_view, a_snapshot

SIMULATED = Place(server="rehearsal:llama3.2-3b", model="llama3.2:3b")


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "history.sqlite", HistorySettings(), ManualClock(NOW), lambda decision: b"{}")
    opened.open()
    yield opened
    opened.close()


def the_jobs(
    store: Store,
    fleet: list[FleetView],
    snapshot: list[Snapshot] | None = None,
    erred: list[str] | None = None,
    keep_pinned: Callable[[], None] = lambda: None,
) -> tuple[SlowJobs, Tally]:
    tally = Tally({model.name: model.facts() for model in DEFAULT_CHAIN})
    jobs = SlowJobs(
        fleet=lambda: fleet[0],
        snapshot=lambda: snapshot[0] if snapshot else a_snapshot(),
        erred=[].append if erred is None else erred.append,
        tally=tally,
        store=store,
        keep_pinned=keep_pinned,
        clock=ManualClock(NOW),
    )
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


def of(values: dict[str, float], at: float = NOW) -> dict[tuple[str, str], Reading[float]]:
    """What cAdvisor says of llama's container."""
    return {(f"container_{name}", "llama"): a_reading(value, at_seconds=at) for name, value in values.items()}


async def test_what_cadvisor_saw_of_a_container_teaches_its_footprint(store):
    view = a_ready_view(LLAMA, used_at_seconds=NOW)
    memory = {"memory_rss_bytes": 1e9, "mapped_file_bytes": 2e9}
    snapshot = Snapshot(number=1, at_seconds=NOW, readings=of(memory))
    jobs, tally = the_jobs(store, [a_fleet(view)], [snapshot])

    await jobs.learn_peaks()

    assert 3e9 == tally.profiles(NOW).peaks["llama3.2:3b", 4096, 1].value


async def test_a_kill_that_docker_did_not_hear_of_raises_the_footprint_by_a_quarter_once(store):
    snapshot = [Snapshot(number=1, at_seconds=NOW, readings=of({"oom_events": 0.0}))]
    erred: list[str] = []
    jobs, tally = the_jobs(store, [a_fleet(a_ready_view(LLAMA))], snapshot, erred)
    before = tally.profiles(NOW).footprint_bytes("llama3.2:3b", 4096)
    await jobs.learn_peaks()
    snapshot[0] = Snapshot(number=2, at_seconds=NOW + 15, readings=of({"oom_events": 1.0}, NOW + 15))
    await jobs.learn_peaks()
    await jobs.learn_peaks()

    assert pytest.approx(1.25 * before, rel=1e-6) == tally.profiles(NOW).footprint_bytes("llama3.2:3b", 4096)
    assert ["oom_killed"] == erred


def test_an_unreadable_footprint_is_learned_anew_and_stops_no_start(store):
    store.remember(PEAKS, "garbage{")
    jobs, tally = the_jobs(store, [a_fleet()])

    jobs.recall()

    assert {} == dict(tally.profiles(NOW).peaks)


def test_who_had_the_models_is_remembered_across_a_restart(store):
    fleet = [a_fleet(a_ready_view(SIMULATED), rehearsal=True, provider="rehearsal")]
    jobs, _ = the_jobs(store, fleet)
    jobs.note_provider()
    assert None is store.recall(LAST_PROVIDER)

    fleet[0] = a_fleet(a_ready_view(LLAMA), provider="docker")
    jobs.note_provider()
    fleet[0] = a_fleet(a_ready_view(LLAMA), provider="ollama", failing="no answer")
    jobs.note_provider()

    assert "docker" == store.recall(LAST_PROVIDER)


async def test_what_a_pinned_model_waits_for_is_logged_once_per_change(store, caplog):
    troubles = [
        "needs 4.9 GiB, 1.2 GiB free",
        "needs 4.9 GiB, 1.3 GiB free",
        "phi3:mini is leased until 14:02:10",
        None,
        "phi3:mini is leased until 14:09:59",
    ]

    def keep_pinned() -> None:
        if (trouble := troubles.pop(0)) is not None:
            raise NotNow(trouble)

    jobs, _ = the_jobs(store, [a_fleet()], keep_pinned=keep_pinned)
    with caplog.at_level("INFO", "dispatcher.summary"):
        while troubles:
            await jobs.keep_pinned()

    told = [record.getMessage() for record in caplog.records]
    assert 3 == len(told), told
    assert "1.2 GiB" in told[0] and "14:02:10" in told[1] and "14:09:59" in told[2]
