"""The state table, whole: what it knows, that it shrugs at the rest, and what failing again and again leads to."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dispatcher.control.residency import TABLE, Happening, Residency, failed, settled_down, turned
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import LifecycleSettings
from tests.builders import NOW

RULES = LifecycleSettings()
HAPPENINGS = get_args(Happening)
EVERY = [(state, event) for state in PlaceState for event in HAPPENINGS]


def failing(times: int, *, apart_seconds: float = 1.0, jitter_ratio: float = 1.0, before=None) -> Residency:
    residency = before or Residency(state=PlaceState.STOPPING)
    for index in range(times):
        at = NOW + index * apart_seconds
        residency = failed(residency, at, RULES, jitter_ratio=jitter_ratio, because="it exited with 1")
    return residency


@pytest.mark.parametrize(("state", "event"), EVERY, ids=[f"{state}-{event}" for state, event in EVERY])
def test_every_state_answers_every_event(state, event):
    before = Residency(state=state, since_seconds=1.0, because="before")
    after = turned(before, event, NOW, "why")
    expected = TABLE.get((state, event))

    if expected is None:
        assert before is after, "an event that a state does not know changes nothing"
    else:
        assert (expected, NOW, "why") == (after.state, after.since_seconds, after.because)


def test_every_event_means_something_somewhere_and_no_row_turns_in_place():
    assert set(HAPPENINGS) == {event for _, event in TABLE}
    assert [] == [row for row, after in TABLE.items() if row[0] is after]


def test_every_state_can_be_reached_and_left():
    """Quarantine is entered by time (settled_down), not by the table."""
    assert set(PlaceState) - {PlaceState.QUARANTINED} == set(TABLE.values())
    assert set(PlaceState) == {state for state, _ in TABLE}


PATHS = {
    "a life": ("start_asked loaded stop_asked seen_stopped", "starting ready stopping stopped"),
    "found running": ("seen_running loaded", "starting ready"),
    "a reload": ("start_asked loaded start_asked loaded", "starting ready starting ready"),
    "drained by hand": ("loaded drain_asked stop_asked seen_stopped", "ready draining stopping stopped"),
    "a draining place cannot be had back": ("loaded drain_asked start_asked", "ready draining draining"),
    "a failed start is stopped": ("start_asked start_failed seen_stopped", "starting stopping stopped"),
    "withdrawn before it began": ("start_asked withdrawn", "starting stopped"),
    "stuck, and then not": ("loaded stop_asked stop_overdue seen_stopped", "ready stopping stuck stopped"),
    "crashed": ("loaded seen_stopped", "ready stopped"),
    "unloaded by others": ("loaded unloaded loaded", "ready starting ready"),
    "a stopping place cannot be had back": ("loaded stop_asked start_asked", "ready stopping stopping"),
}


@pytest.mark.parametrize(("events", "states"), PATHS.values(), ids=PATHS.keys())
def test_a_place_goes_through_its_states(events, states):
    residency, seen = Residency(), []
    for event in events.split():
        residency = turned(residency, event, NOW)
        seen.append(residency.state.value)

    assert states.split() == seen


@given(events=st.lists(st.sampled_from(HAPPENINGS), max_size=20))
@hypothesis_settings(max_examples=200, deadline=None)
def test_ready_is_only_reached_by_being_loaded(events):
    residency = Residency()
    for event in events:
        after = turned(residency, event, NOW)
        if after.state is PlaceState.READY and residency.state is not PlaceState.READY:
            assert "loaded" == event
        residency = after


# ── failing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("failures", "jitter_ratio", "waits_seconds"),
    [
        pytest.param(1, 1.0, 1.0, id="1 s"),
        pytest.param(2, 1.0, 2.0, id="then 2 s"),
        pytest.param(2, 0.9, 1.8, id="full jitter"),
        pytest.param(2, 0.0, 1.0, id="and never below the least"),
    ],
)
def test_the_backoff_doubles_with_full_jitter(failures, jitter_ratio, waits_seconds):
    after = failing(failures, jitter_ratio=jitter_ratio)

    assert pytest.approx(NOW + (failures - 1) + waits_seconds) == after.retry_at_seconds
    assert 0 == after.quarantined_until_seconds


def test_the_backoff_ends_at_300_seconds():
    patient = replace(RULES, restarts_before_quarantine=100)
    residency = Residency()
    for _ in range(12):
        residency = failed(residency, NOW, patient, jitter_ratio=1.0, because="no")

    assert NOW + 300 == residency.retry_at_seconds


def test_three_failures_in_ten_minutes_are_a_quarantine_of_ten_minutes():
    after = failing(3)

    assert NOW + 2 + 600 == after.quarantined_until_seconds
    assert 1 == after.quarantines
    assert () == after.failures_at_seconds, "the next quarantine needs three new failures"


def test_three_failures_further_apart_are_none():
    after = failing(3, apart_seconds=301.0)

    assert 0 == after.quarantined_until_seconds
    assert (NOW + 301, NOW + 602) == after.failures_at_seconds, "the first is out of the window"


def test_quarantines_double_to_an_hour():
    residency, lasts = Residency(state=PlaceState.STOPPING), []
    for _ in range(5):
        residency = failing(3, before=residency)
        lasts.append(residency.quarantined_until_seconds - (NOW + 2))

    assert [600.0, 1200.0, 2400.0, 3600.0, 3600.0] == lasts


@pytest.mark.parametrize(
    ("state", "until_seconds", "expected"),
    [
        pytest.param(PlaceState.STOPPED, NOW + 1, PlaceState.QUARANTINED, id="stopped, and its quarantine runs"),
        pytest.param(PlaceState.STOPPED, NOW, PlaceState.STOPPED, id="stopped, none"),
        pytest.param(PlaceState.STOPPING, NOW + 1, PlaceState.STOPPING, id="not stopped yet"),
        pytest.param(PlaceState.READY, NOW + 1, PlaceState.READY, id="brought up by hand meanwhile"),
        pytest.param(PlaceState.QUARANTINED, NOW + 1, PlaceState.QUARANTINED, id="it still runs"),
        pytest.param(PlaceState.QUARANTINED, NOW, PlaceState.STOPPED, id="it is over"),
    ],
)
def test_quarantine_begins_when_stopped_and_ends_with_its_time(state, until_seconds, expected):
    before = Residency(state=state, quarantined_until_seconds=until_seconds)

    assert expected is settled_down(before, NOW, RULES).state


@pytest.mark.parametrize(("ready_seconds", "quarantines"), [(3599.0, 2), (3600.0, 0)])
def test_an_hour_of_being_ready_forgives_earlier_quarantines(ready_seconds, quarantines):
    before = Residency(state=PlaceState.READY, since_seconds=NOW - ready_seconds, quarantines=2)

    assert quarantines == settled_down(before, NOW, RULES).quarantines
