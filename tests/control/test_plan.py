"""What is done next: starts, stops, relief; and for how long an idle model is worth its memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dispatcher.control.plan import keep_alive_seconds, keep_priority, plan
from dispatcher.vocabulary.action import Start, Stop
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.settings import GIB, LifecycleSettings, PolicySettings
from dispatcher.vocabulary.signal import Freshness
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_place_view, a_ready_view, a_snapshot, some_profiles

RULES = LifecycleSettings()
POLICY = PolicySettings()
LEASED = {"leases": 1, "busy": True}


def planned(*views, snapshot=None, **fleet) -> list[tuple]:
    """(verb, place, num_ctx or cause)."""
    actions = plan(a_fleet(*views, **fleet), snapshot or a_snapshot(), NOW, POLICY)
    return [
        ("start", one.place, one.num_ctx) if isinstance(one, Start) else ("stop", one.place, one.cause)
        for one in actions
    ]


def idle(seconds: float, place: Place = LLAMA, **changes):
    """Ready and unused for so long, worth keeping for ten minutes."""
    return a_ready_view(place, **{"used_at_seconds": NOW - seconds, "keep_alive_seconds": 600.0, **changes})


def starting(place: Place = LLAMA, **changes):
    return a_place_view(place, **{"state": PlaceState.STARTING, "num_ctx": 8192, "budget_bytes": GIB, **changes})


DECISIONS = {
    # starts
    "what is starting is started": ((starting(),), [("start", LLAMA, 8192)]),
    "with the least context where none is known": ((starting(num_ctx=None),), [("start", LLAMA, 4096)]),
    "a start waits for its backoff": ((starting(retry_at_seconds=NOW + 1),), []),
    "a backoff that is over": ((starting(retry_at_seconds=NOW),), [("start", LLAMA, 8192)]),
    "a start waits for its victims": (
        (starting(QWEN), a_ready_view(LLAMA, state=PlaceState.STOPPING, taken_by=QWEN)),
        [("stop", LLAMA, "evicted")],
    ),
    "and not for those of others": (
        (starting(QWEN), a_ready_view(LLAMA, state=PlaceState.STOPPING, taken_by=PHI)),
        [("start", QWEN, 8192), ("stop", LLAMA, "evicted")],
    ),
    "a stuck victim is waited for": (
        (starting(QWEN), a_ready_view(LLAMA, state=PlaceState.STUCK, taken_by=QWEN)),
        [("stop", LLAMA, "failed")],
    ),
    "what is down while it is leased comes back": (
        (a_place_view(LLAMA, num_ctx=8192, **LEASED),),
        [("start", LLAMA, 8192)],
    ),
    "after its backoff": ((a_place_view(LLAMA, retry_at_seconds=NOW + 1, **LEASED),), []),
    "what is down and not wanted stays down": ((a_place_view(LLAMA),), []),
    "quarantine is left to time": ((a_place_view(LLAMA, state=PlaceState.QUARANTINED, **LEASED),), []),
    # stops
    "what is stopping is stopped": ((a_ready_view(LLAMA, state=PlaceState.STOPPING),), [("stop", LLAMA, "asked")]),
    "what drained is stopped": ((a_ready_view(LLAMA, state=PlaceState.DRAINING),), [("stop", LLAMA, "asked")]),
    "a drain waits for leases": ((a_ready_view(LLAMA, state=PlaceState.DRAINING, **LEASED),), []),
    "and for what is in flight": (
        (a_ready_view(LLAMA, state=PlaceState.DRAINING, in_flight=1, busy=True),),
        [],
    ),
    # idle
    "idle for longer than it is worth": ((idle(600),), [("stop", LLAMA, "idle")]),
    "idle for less": ((idle(599),), []),
    "idle since it became ready, never used": (
        (idle(NOW, ready_at_seconds=NOW - 601),),
        [("stop", LLAMA, "idle")],
    ),
    "fresh, never used": ((idle(NOW, ready_at_seconds=NOW - 10),), []),
    "idle but leased": ((idle(9999, **LEASED),), []),
    "idle but in flight": ((idle(9999, in_flight=1, busy=True),), []),
    "idle but its CPU is busy": ((idle(9999, busy=True),), []),
    "idle but pinned": ((idle(9999, pinned=True),), []),
    "idle but in its dwell": ((idle(9999, dwell_until_seconds=NOW + 1),), []),
    "idle and claimed: it is stopped by the grant that waits for it": (
        (idle(9999, claimed_by="d-9", claimed_for=QWEN, claimed_until_seconds=NOW + 60),),
        [],
    ),
}


def hung(place: Place = LLAMA, **changes):
    """Ready by its state, its container runs, and it has been silent for exactly as long as a load may take."""
    return idle(0, place, **{"answers": False, "because": "no answer", "hung_at_seconds": NOW, **changes})


DECISIONS |= {
    "a server that hangs is stopped as a failure": ((hung(),), [("stop", LLAMA, "failed")]),
    "also in its dwell": ((hung(dwell_until_seconds=NOW + 60),), [("stop", LLAMA, "failed")]),
    "also a pinned one: it is started again": ((hung(pinned=True),), [("stop", LLAMA, "failed")]),
    "and not because it is idle, too": ((hung(used_at_seconds=NOW - 9999),), [("stop", LLAMA, "failed")]),
    "silent for less than a load may take": ((hung(hung_at_seconds=NOW + 1),), []),
    "silent but leased": ((hung(**LEASED),), []),
    "silent but in flight, or paused, or computing": ((hung(in_flight=1, busy=True),), []),
}


@pytest.mark.parametrize(("views", "expected"), DECISIONS.values(), ids=DECISIONS.keys())
def test_each_place_gets_what_its_state_calls_for(views, expected):
    assert expected == planned(*views)


@pytest.mark.parametrize(("views", "_"), DECISIONS.values(), ids=DECISIONS.keys())
def test_nothing_is_done_while_the_engine_cannot_be_asked(views, _):
    assert [] == planned(*views, failing="no answer")


def test_a_start_says_whether_a_lease_wants_it():
    leased, held = starting(LLAMA, **LEASED), starting(PHI)
    causes = {one.place: one.cause for one in plan(a_fleet(leased, held), a_snapshot(), NOW, POLICY)}

    assert {LLAMA: "leased", PHI: "asked"} == causes


def test_an_idle_stop_says_for_how_long():
    (action,) = plan(a_fleet(idle(700)), a_snapshot(), NOW, POLICY)

    assert Stop(place=LLAMA, cause="idle", detail="idle for 700 s, kept for 600 s") == action


PRESSED = {"host_memory_available_bytes": 1.0, "host_memory_pressure_full_ratio": 0.2}


def hard(*names: str, **changes):
    return a_snapshot(**{"latches": frozenset(names), "readings": PRESSED, **changes})


RELIEF = {
    "no pressure": ((idle(1), idle(1, PHI)), a_snapshot(), {}, []),
    "full pressure: the least worth keeping goes": (
        (idle(1, keep_priority=2.0), idle(1, PHI, keep_priority=1.0)),
        hard("pressure_full"),
        {},
        [("stop", PHI, "pressure")],
    ),
    "of equals the longest unused": ((idle(5), idle(9, PHI)), hard("pressure_full"), {}, [("stop", PHI, "pressure")]),
    "pressure_high only keeps from loading": ((idle(1), idle(1, PHI)), hard("pressure_high"), {}, []),
    "never the last one": ((idle(1),), hard("pressure_full"), {}, []),
    "unless memory is hard": ((idle(1),), hard("memory_hard"), {}, [("stop", LLAMA, "pressure")]),
    "never one that is leased": (
        (idle(1, **LEASED), idle(1, PHI, pinned=True)),
        hard("memory_hard"),
        {},
        [],
    ),
    "one at a time": (
        (idle(1), idle(1, PHI), a_ready_view(QWEN, state=PlaceState.STOPPING)),
        hard("pressure_full"),
        {},
        [("stop", QWEN, "asked")],
    ),
    "more runs than may": (
        (idle(1, keep_priority=2.0), idle(1, PHI, keep_priority=1.0)),
        a_snapshot(),
        {"reserved_bytes": 15 * GIB + 1},
        [("stop", PHI, "pressure")],
    ),
    "exactly what may": ((idle(1), idle(1, PHI)), a_snapshot(), {"reserved_bytes": 15 * GIB}, []),
    "what goes anyway is not told twice": (
        (idle(9999), idle(1, PHI, keep_priority=1.0)),
        hard("pressure_full"),
        {},
        [("stop", LLAMA, "idle"), ("stop", PHI, "pressure")],
    ),
}


@pytest.mark.parametrize(("views", "snapshot", "fleet", "expected"), RELIEF.values(), ids=RELIEF.keys())
def test_relief_stops_one_idle_place_at_a_time_and_never_the_last(views, snapshot, fleet, expected):
    assert expected == planned(*views, snapshot=snapshot, **fleet)


BOTH = ("memory_hard", "pressure_full")
CALM = {"host_memory_available_bytes": 12.0 * GIB, "host_memory_pressure_full_ratio": 0.05}
UNKNOWN = dict.fromkeys(CALM)


@pytest.mark.parametrize("readings", [CALM, UNKNOWN], ids=["it is over", "nobody knows"])
def test_a_latch_that_no_reading_bears_out_relieves_nothing(readings):
    assert [] == planned(idle(1), idle(1, PHI), snapshot=hard(*BOTH, readings=readings))


@pytest.mark.parametrize("latch", BOTH)
def test_relief_waits_for_a_reading_that_knows_of_the_last_stop(latch):
    places = (idle(1), idle(1, PHI))
    assert [] == planned(*places, a_place_view(QWEN, stopped_at_seconds=NOW), snapshot=hard(latch))
    assert 1 == len(planned(*places, a_place_view(QWEN, stopped_at_seconds=NOW - 1), snapshot=hard(latch)))


UNSURE = [Freshness.STALE, Freshness.BLIND]


@pytest.mark.parametrize("freshness", UNSURE)
def test_nothing_healthy_is_stopped_while_nobody_knows_unless_memory_is_hard(freshness):
    places = (idle(9999), idle(9999, PHI))
    more_than_may = {"reserved_bytes": 15 * GIB + 1}
    assert [] == planned(*places, snapshot=hard("pressure_full", freshness=freshness), **more_than_may)
    assert 1 == len(planned(*places, snapshot=hard("memory_hard", freshness=freshness)))


@pytest.mark.parametrize("freshness", UNSURE)
@pytest.mark.parametrize("state", [PlaceState.STARTING, PlaceState.STOPPING, PlaceState.STUCK, PlaceState.DRAINING])
def test_what_was_begun_goes_on_while_nobody_knows(state, freshness):
    place = a_ready_view(LLAMA, state=state)
    assert planned(place) == planned(place, snapshot=a_snapshot(freshness=freshness)) != []


@pytest.mark.parametrize(("freshness", "starts"), [(Freshness.STALE, 1), (Freshness.BLIND, 0)])
def test_what_is_down_while_leased_comes_back_on_stale_readings_and_not_on_none(freshness, starts):
    assert starts == len(planned(a_place_view(LLAMA, **LEASED), snapshot=a_snapshot(freshness=freshness)))


@pytest.mark.parametrize("freshness", Freshness)
def test_a_server_that_hangs_is_no_healthy_one_whatever_is_known(freshness):
    assert [("stop", LLAMA, "failed")] == planned(hung(), snapshot=a_snapshot(freshness=freshness))


def test_blind_a_server_that_hangs_is_left_alone_while_another_answers():
    """It would not be brought back before somebody knows the memory again."""
    blind = a_snapshot(freshness=Freshness.BLIND)

    assert [] == planned(hung(), a_ready_view(PHI), snapshot=blind)
    assert [("stop", LLAMA, "failed")] == planned(hung(), hung(PHI, **LEASED), snapshot=blind)


# ── keep-alive ──────────────────────────────────────────────────────────────────────────────────────────────────────


def cost(tau: float, gaps: list[float], rent: float, load_seconds: float) -> float:
    """E[min(gap, τ)] × rent + P(gap > τ) × load: numbers.md, as it stands there."""
    held = sum(min(gap, tau) for gap in gaps) / len(gaps)
    return held * rent + sum(gap > tau for gap in gaps) / len(gaps) * load_seconds


@given(
    gaps=st.lists(st.floats(1, 40_000), min_size=5, max_size=40),
    load_seconds=st.floats(0.5, 300),
    footprint_gib=st.floats(0.5, 14),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_no_keep_alive_within_floor_and_cap_is_cheaper_than_the_one_chosen(gaps, load_seconds, footprint_gib):
    footprint, room = round(footprint_gib * GIB), 15 * GIB
    rent = 0.05 * footprint / room
    tau = keep_alive_seconds(gaps, footprint, room, load_seconds, RULES)
    floor, cap = RULES.idle_min_seconds, RULES.idle_max_seconds
    tried = [
        floor,
        cap,
        *(gap for gap in gaps if floor <= gap <= cap),
        *(floor + (cap - floor) * k / 97 for k in range(98)),
    ]

    assert floor <= tau <= cap
    assert cost(tau, gaps, rent, load_seconds) <= min(cost(one, gaps, rent, load_seconds) for one in tried) + 1e-6


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        pytest.param((), 10 / (0.05 * 0.2), id="no gaps: load / rent"),
        pytest.param((50.0,) * 4, 1000.0, id="four are too few"),
        pytest.param((50.0,) * 5, 50.0, id="five: just as long as it is always wanted again"),
        pytest.param((50.0, 50.0, 50.0, 50.0, 9000.0), 50.0, id="the night is not waited out"),
        pytest.param((9000.0,) * 5, 30.0, id="never worth it: the floor"),
        pytest.param((10.0,) * 9, 30.0, id="never below the floor"),
    ],
)
def test_keep_alive_follows_the_gaps_seen(gaps, expected):
    """Load 10 s, a fifth of the room: rent 0.01 s per second."""
    assert pytest.approx(expected) == keep_alive_seconds(gaps, 3 * GIB, 15 * GIB, 10.0, RULES)


def test_five_hours_of_silence_are_not_waited_for_with_a_cap_of_four():
    """Held for four hours and loaded again all the same would be the worst of both."""
    five_hours = [18_000.0] * 10

    assert 30.0 == keep_alive_seconds(five_hours, 3 * GIB, 15 * GIB, 300.0, RULES)


def test_the_ski_rental_prior_ends_at_the_cap():
    assert 14_400 == keep_alive_seconds((), 1 * GIB, 15 * GIB, 300.0, RULES)


def test_a_configured_idle_time_is_taken_as_it_is():
    rules = replace(RULES, idle_seconds=7.0)

    assert 7.0 == keep_alive_seconds((50.0,) * 9, 3 * GIB, 15 * GIB, 10.0, rules)


@pytest.mark.parametrize(("footprint", "room"), [(3 * GIB, None), (3 * GIB, 0), (0, 15 * GIB)])
def test_without_a_rent_it_is_kept_for_as_long_as_may_be(footprint, room):
    assert 14_400 == keep_alive_seconds((50.0,) * 9, footprint, room, 10.0, RULES)


# ── greedy-dual ─────────────────────────────────────────────────────────────────────────────────────────────────────


def priority(base: float = 0.0, per_hour: float = 1.0, gib: float = 1.0, load_seconds: float = 10.0) -> float:
    profiles = some_profiles(wanted_per_second={"llama3.2:3b": per_hour / 3600})
    return keep_priority(base, profiles, LLAMA, round(gib * GIB), load_seconds)


def test_priority_is_l_plus_frequency_times_load_over_footprint():
    assert pytest.approx(3 + 6 * 10 / 2) == priority(base=3, per_hour=6, gib=2, load_seconds=10)


def test_what_is_rarely_wanted_quick_to_load_large_or_long_unused_goes_first():
    for least, more in (
        (priority(per_hour=1), priority(per_hour=2)),
        (priority(load_seconds=5), priority(load_seconds=6)),
        (priority(gib=4), priority(gib=3)),
        (priority(base=0), priority(base=1)),
    ):
        assert least < more


def test_a_model_nobody_wants_is_worth_its_l_alone():
    assert 4.0 == keep_priority(4.0, some_profiles(), LLAMA, GIB, 10.0)
    assert 4.0 == keep_priority(4.0, some_profiles(), LLAMA, 0, 10.0)
