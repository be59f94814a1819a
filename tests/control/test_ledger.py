"""Memory as promises: what is granted never sums to more than there is, and old samples are corrected first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dispatcher.control.ledger import (
    Holding,
    Ledger,
    Shortage,
    adopted,
    free_bytes,
    granted,
    released,
    reserve_bytes,
    reserved_bytes,
    room_bytes,
    victims_of,
)
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.settings import GIB, MIB, LifecycleSettings
from dispatcher.vocabulary.signal import HOST
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_place_view, a_reading, a_ready_view, a_snapshot

PLACES = [Place(server=f"docker:p{index}", model="m") for index in range(6)]


def a_ledger(room: int | None = 10, foreign: int = 0, **held: int) -> Ledger:
    """held: phi=4 and so on, in small round units."""
    names = {"phi": PHI, "llama": LLAMA, "qwen": QWEN}
    return Ledger(
        room_bytes=room,
        foreign_bytes=foreign,
        holdings={names[name]: Holding(budget_bytes=budget) for name, budget in held.items()},
    )


@pytest.mark.parametrize(
    ("total_bytes", "rules", "expected"),
    [
        pytest.param(16 * GIB, {}, 15 * GIB, id="1 GiB is kept free …"),
        pytest.param(100 * GIB, {}, 95 * GIB, id="… or 5 % where that is more"),
        pytest.param(16 * GIB, {"reserve_bytes": 0}, 16 * GIB, id="a configured reserve, 0 included"),
        pytest.param(16 * GIB, {"capacity_bytes": 8 * GIB}, 7 * GIB, id="a configured capacity"),
        pytest.param(None, {"capacity_bytes": 8 * GIB}, 7 * GIB, id="which needs no host"),
        pytest.param(None, {}, None, id="nobody knows"),
    ],
)
def test_the_room_is_capacity_less_reserve(total_bytes, rules, expected):
    assert expected == room_bytes(total_bytes, LifecycleSettings(**rules))


def test_the_reserve_is_5_percent_and_at_least_1_gib():
    assert GIB == reserve_bytes(2 * GIB, LifecycleSettings())
    assert 2 * GIB == reserve_bytes(40 * GIB, LifecycleSettings())


GRANTS = {
    "it fits": (a_ledger(10, llama=3), QWEN, 7, (), 10),
    "one too many": (a_ledger(10, llama=3), QWEN, 8, (), Shortage(need_bytes=8, free_bytes=7)),
    "foreign models count": (a_ledger(10, foreign=4, llama=3), QWEN, 4, (), Shortage(need_bytes=4, free_bytes=3)),
    "its victims' budgets are taken over": (a_ledger(10, llama=3, phi=4), QWEN, 7, (PHI,), 10),
    "victims larger than the grantee count with their own": (a_ledger(10, llama=3, phi=6), QWEN, 2, (PHI,), 9),
    "two victims": (a_ledger(10, llama=4, phi=5), QWEN, 10, (PHI, LLAMA), 10),
    "not even then": (a_ledger(10, llama=4, phi=4), QWEN, 7, (PHI,), Shortage(need_bytes=7, free_bytes=2)),
    "a reload counts as the larger": (a_ledger(10, llama=6), LLAMA, 4, (), 6),
    "a reload that grows": (a_ledger(10, llama=6), LLAMA, 9, (), 9),
    "nobody knows the room": (a_ledger(None), QWEN, 1, (), Shortage(need_bytes=1, free_bytes=None)),
    "a victim that holds nothing": (a_ledger(10, llama=4), QWEN, 6, (PHI,), 10),
}


@pytest.mark.parametrize(("ledger", "place", "need", "victims", "expected"), GRANTS.values(), ids=GRANTS.keys())
def test_a_grant_fits_with_its_victims_or_says_how_much_is_free(ledger, place, need, victims, expected):
    after = granted(ledger, place, need, victims)

    assert expected == (after if isinstance(after, Shortage) else reserved_bytes(after))


def test_no_third_promise_is_made_on_memory_on_its_way_to_being_free():
    """phi's 6 go to qwen's 5: together 6, and the 4 beside them are all there is."""
    first = granted(a_ledger(10, phi=6), QWEN, 5, (PHI,))

    assert 6 == reserved_bytes(first)
    assert isinstance(granted(first, LLAMA, 5, ()), Shortage)
    assert 10 == reserved_bytes(granted(first, LLAMA, 4, ()))


def test_a_victim_is_given_once():
    first = granted(a_ledger(10, phi=6), QWEN, 5, (PHI,))

    assert Shortage(need_bytes=1, free_bytes=0) == granted(first, LLAMA, 1, (PHI,))
    assert (PHI,) == victims_of(first, QWEN)


def test_what_waits_for_victims_of_its_own_is_nobodys_victim():
    first = granted(a_ledger(10, phi=6), QWEN, 5, (PHI,))

    assert isinstance(granted(first, LLAMA, 5, (QWEN,)), Shortage)


def test_a_released_victim_leaves_the_grantee_with_its_own_budget():
    first = granted(a_ledger(10, phi=6), QWEN, 5, (PHI,))

    assert 5 == reserved_bytes(released(first, PHI))


def test_a_withdrawn_grantee_leaves_its_victims_counting_for_themselves():
    first = granted(a_ledger(10, phi=6), QWEN, 8, (PHI,))
    after = released(first, QWEN)

    assert 8 == reserved_bytes(first)
    assert a_ledger(10, phi=6) == after
    assert (PHI,) == victims_of(granted(after, LLAMA, 1, (PHI,)), LLAMA)


def test_what_runs_counts_whether_it_was_promised_or_not():
    over = adopted(a_ledger(10, phi=6), QWEN, 8)

    assert 14 == reserved_bytes(over)
    assert isinstance(granted(over, LLAMA, 1, ()), Shortage)


def test_adopting_a_victim_keeps_it_a_victim():
    first = granted(a_ledger(10, phi=6), QWEN, 5, (PHI,))

    assert (PHI,) == victims_of(adopted(first, PHI, 7), QWEN)
    assert 7 == reserved_bytes(adopted(first, PHI, 7))


@given(
    room=st.integers(0, 100),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["grant", "grant", "release"]),
            st.sampled_from(PLACES),
            st.integers(0, 60),
            st.lists(st.sampled_from(PLACES), unique=True, max_size=3),
        ),
        max_size=30,
    ),
)
@hypothesis_settings(max_examples=400, deadline=None)
def test_the_sum_of_what_is_granted_never_exceeds_the_room(room, steps):
    """Checked against the least a house needs: everything that holds memory now, and every grantee when it is up."""
    ledger = Ledger(room_bytes=room)
    for verb, place, budget, victims in steps:
        if verb == "release":
            before = ledger
            ledger = released(ledger, place)
            assert place not in ledger.holdings
            untouched = before.holdings.keys() - {place}
            assert {one: before.holdings[one].budget_bytes for one in untouched} == {
                one: ledger.holdings[one].budget_bytes for one in untouched
            }
        else:
            after = granted(ledger, place, budget, victims)
            if isinstance(after, Ledger):
                ledger = after
                assert ledger.holdings[place].budget_bytes >= budget
        now = sum(
            holding.budget_bytes
            for one, holding in ledger.holdings.items()
            if one not in {other.taken_by for other in ledger.holdings.values()}  # grantees have not started yet
        )
        later = sum(holding.budget_bytes for holding in ledger.holdings.values() if holding.taken_by is None)
        if verb == "grant":
            assert reserved_bytes(ledger) <= room
        assert reserved_bytes(ledger) >= max(now, later)
        assert all(holding.taken_by in {None, *ledger.holdings} for holding in ledger.holdings.values())


@given(
    held=st.dictionaries(st.sampled_from(PLACES[1:]), st.integers(0, 30), max_size=4),
    need=st.integers(0, 60),
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_giving_back_a_grant_restores_what_was_before(held, need):
    before = Ledger(room_bytes=200, holdings={one: Holding(budget_bytes=size) for one, size in held.items()})
    after = granted(before, PLACES[0], need, held.keys())

    assert max(need, sum(held.values())) == reserved_bytes(after)
    assert before == released(after, PLACES[0])


# ── measured memory can only veto ───────────────────────────────────────────────────────────────────────────────────


def free_of(available_gib: float | None, *views, sampled_at: float = NOW, **fleet) -> float | None:
    """In GiB. 16 GiB of capacity, 1 GiB of reserve."""
    memory = a_reading(None if available_gib is None else available_gib * GIB, at_seconds=sampled_at)
    snapshot = a_snapshot()
    snapshot = replace(snapshot, readings={**snapshot.readings, ("host_memory_available_bytes", HOST): memory})
    found = free_bytes(a_fleet(*(views or (a_place_view(QWEN),)), **fleet), snapshot, NOW)
    return None if found is None else found / GIB


HELD = {"budget_bytes": 4 * GIB, "measured_bytes": 4 * GIB}


@pytest.mark.parametrize(
    ("available_gib", "views", "fleet", "expected"),
    [
        pytest.param(12.0, (), {}, 11.0, id="measurement is the smaller"),
        pytest.param(16.0, (), {}, 15.0, id="they agree"),
        pytest.param(20.0, (), {}, 15.0, id="the ledger is the smaller"),
        pytest.param(12.0, (), {"reserved_bytes": 9 * GIB}, 6.0, id="so much is promised"),
        pytest.param(0.25, (), {}, -0.75, id="below nothing"),
        pytest.param(None, (), {}, None, id="not measured"),
        pytest.param(float("nan"), (), {}, None, id="no number"),
        pytest.param(float("inf"), (), {}, None, id="absurd"),
        pytest.param(12.0, (), {"capacity_bytes": None}, None, id="no capacity"),
    ],
)
def test_free_is_the_smaller_of_ledger_and_measurement(available_gib, views, fleet, expected):
    assert expected == free_of(available_gib, *views, **fleet)


CORRECTIONS = {
    "ready since before the sample": (a_ready_view(LLAMA, **HELD, ready_at_seconds=NOW - 60), NOW, 9.0),
    "a start not in the sample": (
        a_place_view(
            LLAMA, state=PlaceState.STARTING, budget_bytes=4 * GIB, measured_bytes=None, started_at_seconds=NOW - 1
        ),
        NOW - 2,
        5.0,
    ),
    "a start not in the sample, though measured since": (
        a_place_view(
            LLAMA, state=PlaceState.STARTING, budget_bytes=4 * GIB, measured_bytes=3 * GIB, started_at_seconds=NOW - 1
        ),
        NOW - 2,
        5.0,
    ),
    "a start half in the sample": (
        a_place_view(
            LLAMA, state=PlaceState.STARTING, budget_bytes=4 * GIB, measured_bytes=3 * GIB, started_at_seconds=NOW - 9
        ),
        NOW - 2,
        8.0,
    ),
    "became ready after the sample": (
        a_ready_view(LLAMA, **HELD, started_at_seconds=NOW - 4, ready_at_seconds=NOW - 1),
        NOW - 5,
        5.0,
    ),
    "found running, never started here": (a_ready_view(LLAMA, **HELD, ready_at_seconds=NOW - 1), NOW - 5, 9.0),
    "a reload: what it held is in the sample": (
        a_place_view(
            LLAMA,
            state=PlaceState.STARTING,
            budget_bytes=5 * GIB,
            measured_bytes=4 * GIB,
            ready_at_seconds=NOW - 600,
            started_at_seconds=NOW - 1,
        ),
        NOW - 2,
        8.0,
    ),
    "a stop not in the sample": (
        a_place_view(LLAMA, stopped_at_seconds=NOW - 1, released_bytes=4 * GIB),
        NOW - 2,
        13.0,
    ),
    "a stop of what had come up after the sample": (
        a_place_view(LLAMA, stopped_at_seconds=NOW - 1, released_bytes=4 * GIB, released_since_seconds=NOW - 1.5),
        NOW - 2,
        9.0,
    ),
    "a stop not in the sample, and its lease keeps its share: once, not twice": (
        a_place_view(
            LLAMA,
            budget_bytes=4 * GIB,
            leases=1,
            stopped_at_seconds=NOW - 1,
            started_at_seconds=NOW - 900,
            released_bytes=4 * GIB,
        ),
        NOW - 2,
        9.0,
    ),
    "a stop in the sample": (a_place_view(LLAMA, stopped_at_seconds=NOW - 3, released_bytes=4 * GIB), NOW - 2, 9.0),
    "stopping: still there": (a_ready_view(LLAMA, **HELD, state=PlaceState.STOPPING), NOW, 9.0),
    "stuck: still there": (a_ready_view(LLAMA, **HELD, state=PlaceState.STUCK), NOW, 9.0),
    "down, but leased: it will come back": (
        a_place_view(LLAMA, budget_bytes=4 * GIB, leases=1, stopped_at_seconds=NOW - 60, started_at_seconds=NOW - 900),
        NOW,
        5.0,
    ),
}


@pytest.mark.parametrize(("view", "sampled_at", "expected"), CORRECTIONS.values(), ids=CORRECTIONS.keys())
def test_a_sample_is_corrected_by_our_own_starts_and_stops(view, sampled_at, expected):
    """10 GiB measured free, less 1 of reserve: 9, corrected by what the sample cannot know."""
    assert expected == free_of(10.0, view, sampled_at=sampled_at, reserved_bytes=0)


def test_a_grantee_is_not_counted_on_top_of_what_its_victims_still_hold():
    """qwen will need 5 GiB; llama's 4 are still in use and in the sample, and become its own: 1 more."""
    grantee = a_place_view(QWEN, state=PlaceState.STARTING, budget_bytes=5 * GIB, started_at_seconds=NOW - 1)
    victim = a_ready_view(LLAMA, **HELD, state=PlaceState.STOPPING, taken_by=QWEN)

    assert 8.0 == free_of(10.0, grantee, victim, reserved_bytes=0)


def test_what_would_be_evicted_comes_on_top():
    views = (a_ready_view(LLAMA, budget_bytes=512 * MIB), a_place_view(QWEN))
    fleet = a_fleet(*views, reserved_bytes=0)
    snapshot = a_snapshot(readings={"host_memory_available_bytes": 2.0 * GIB})

    assert 1 * GIB == free_bytes(fleet, snapshot, NOW)
    assert 1.5 * GIB == free_bytes(fleet, snapshot, NOW, evicting=frozenset({LLAMA}))
