"""What a look at the engine changes, and what it must not: adopted, crashed, reloaded, vanished, restored."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.vocabulary.event import Acted
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.settings import GIB
from tests.builders import LLAMA, NOW, PHI, QWEN, a_lease, a_seen
from tests.lifecycle.looked import UNLOADED, UP, Looked, ready_house

S = PlaceState


# ── what is found ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("seen", "state", "num_ctx", "reserved_gib"),
    [
        pytest.param({}, S.STOPPED, None, 0.0, id="stopped"),
        pytest.param(UP, S.READY, 4096, 2.6, id="loaded"),
        pytest.param({**UP, "loaded_num_ctx": 16384}, S.READY, 16384, 3.9, id="loaded with more"),
        pytest.param({**UP, "loaded_num_ctx": None}, S.READY, 4096, 2.6, id="loaded with nobody knows what"),
        pytest.param(UNLOADED, S.STARTING, 4096, 2.6, id="running, not loaded: it is loaded"),
        pytest.param({"running": True}, S.STARTING, 4096, 2.6, id="running, nobody said whether loaded"),
    ],
)
def test_what_is_found_is_adopted_as_it_is(seen, state, num_ctx, reserved_gib):
    house = Looked()
    house.look(a_seen(LLAMA, **seen))

    assert (state, num_ctx, reserved_gib) == (house.state(LLAMA), house.num_ctx(LLAMA), house.reserved_gib())


def test_what_is_found_running_without_its_model_and_without_room_is_stopped():
    house = Looked()
    house.look(a_seen(QWEN, **UP), a_seen(PHI, **UNLOADED))

    assert (S.READY, S.STOPPING) == (house.state(QWEN), house.state(PHI))


def test_what_runs_and_does_not_say_what_it_has_loaded_is_not_stopped_as_unwanted():
    house = Looked()

    house.look(a_seen(QWEN, **UP), a_seen(PHI, running=True, answers=False, loaded=None))

    assert (S.READY, S.STARTING) == (house.state(QWEN), house.state(PHI))


def test_what_is_found_loaded_counts_even_beyond_the_room():
    house = Looked()
    house.look(a_seen(QWEN, **UP), a_seen(PHI, **UP))

    assert (S.READY, S.READY, 8.7) == (house.state(QWEN), house.state(PHI), house.reserved_gib())


def test_a_model_outside_the_chain_counts_with_what_it_is_seen_to_hold():
    outside = Place(server="docker:other", model="other:1b")
    house = Looked()
    house.look(a_seen(outside, **UP, memory_used_bytes=2 * GIB))

    assert 2.0 == house.reserved_gib()


def test_a_place_at_work_is_judged_by_the_end_of_that_work():
    house = ready_house()
    house.at_work.add(LLAMA)
    house.look(a_seen(LLAMA))

    assert S.READY is house.state(LLAMA)


def test_a_look_that_began_before_the_last_turn_proves_nothing():
    house = ready_house()
    house.look(a_seen(LLAMA), began_before_seconds=5.0)
    assert S.READY is house.state(LLAMA)

    house.look(a_seen(LLAMA))
    assert S.STOPPED is house.state(LLAMA)


# ── what has changed ────────────────────────────────────────────────────────────────────────────────────────────────

GONE = {
    "a stop by hand": ({"exit_code": 0}, None, "it stopped, and nobody here asked for it"),
    "SIGKILL by hand": ({"exit_code": 137}, None, "it stopped, and nobody here asked for it"),
    "SIGTERM by hand": ({"exit_code": 143}, None, "it stopped, and nobody here asked for it"),
    "nobody knows": ({}, None, "it stopped, and nobody here asked for it"),
    "out of memory": ({"exit_code": 137, "oom_killed": True}, "oom_killed", "killed: out of memory"),
    "a crash": ({"exit_code": 2}, "place_crashed", "it exited with 2, and nobody here asked for it"),
}


@pytest.mark.parametrize(("seen", "error_type", "because"), GONE.values(), ids=GONE.keys())
def test_what_was_ready_and_is_gone_has_crashed_or_was_stopped_by_hand(seen, error_type, because):
    house = ready_house()
    house.look(a_seen(LLAMA, **seen))
    crashes = [event.error_type for event in house.events if isinstance(event, Acted)]
    resident = house.tenancy.residents[LLAMA]

    assert (S.STOPPED, 0.0) == (house.state(LLAMA), house.reserved_gib())
    assert because == resident.residency.because
    assert ([error_type] if error_type else []) == crashes
    assert (error_type is not None) == bool(resident.residency.failures_at_seconds)


def test_a_crash_leaves_a_leased_place_its_share_of_the_ledger():
    house = ready_house()
    house.tenancy.reserve(place=LLAMA, num_ctx=4096, evicts=(), decision_id="d-1", seconds=60.0)
    house.look(a_seen(LLAMA, exit_code=2))

    assert (S.STOPPED, 2.6) == (house.state(LLAMA), house.reserved_gib())
    assert {} == house.ends()


def test_a_model_that_somebody_unloaded_is_loaded_again():
    house = ready_house()
    house.look(a_seen(LLAMA, **UNLOADED))

    assert S.STARTING is house.state(LLAMA)


@pytest.mark.parametrize("loaded", [None, True])
def test_an_engine_that_does_not_say_has_not_unloaded(loaded):
    house = ready_house()
    house.look(a_seen(LLAMA, **{**UP, "loaded": loaded, "loaded_num_ctx": None}))

    assert (S.READY, 4096) == (house.state(LLAMA), house.num_ctx(LLAMA))


def test_another_context_loaded_by_others_is_what_counts():
    house = ready_house()
    house.look(a_seen(LLAMA, **{**UP, "loaded_num_ctx": 16384}))

    assert (S.READY, 16384, 3.9) == (house.state(LLAMA), house.num_ctx(LLAMA), house.reserved_gib())


def test_a_place_that_is_no_longer_declared_is_forgotten_with_its_leases():
    house = ready_house()
    lease = house.tenancy.reserve(place=LLAMA, num_ctx=4096, evicts=(), decision_id="d-1", seconds=60.0)
    house.look(a_seen(PHI))

    assert {lease.id: "withdrawn"} == house.ends()
    assert [PHI] == list(house.tenancy.residents)
    assert 0 == house.reserved_gib()


@pytest.mark.parametrize("events", [("stop_asked",), ("stop_asked", "stop_overdue")])
def test_what_was_told_to_stop_is_stopped_when_it_is_seen_so(events):
    house = ready_house()
    for event in events:
        house.tenancy.turn(LLAMA, event, "test")
    house.look(a_seen(LLAMA, **UP))
    assert (S.STUCK if len(events) == 2 else S.STOPPING, 2.6) == (house.state(LLAMA), house.reserved_gib())

    house.look(a_seen(LLAMA))
    assert (S.STOPPED, 0.0) == (house.state(LLAMA), house.reserved_gib())


def test_what_ran_in_quarantine_and_is_gone_gives_its_memory_back():
    house = Looked()
    house.look(a_seen(LLAMA))
    resident = house.tenancy.residents[LLAMA]
    quarantined = replace(resident.residency, state=S.QUARANTINED, quarantined_until_seconds=NOW + 600)
    house.tenancy.residents[LLAMA] = replace(resident, residency=quarantined)
    house.look(a_seen(LLAMA, **UNLOADED))
    assert (S.QUARANTINED, 2.6) == (house.state(LLAMA), house.reserved_gib())

    house.look(a_seen(LLAMA))
    assert (S.QUARANTINED, 0.0) == (house.state(LLAMA), house.reserved_gib())


# ── a restart of the daemon, at every moment ────────────────────────────────────────────────────────────────────────

GRANT = a_lease(QWEN, id="l-big", evicts=(LLAMA,), granted_at_seconds=NOW - 9)
BEGUN = replace(GRANT, expires_at_seconds=NOW + 60)

MOMENTS = {
    "granted, nothing done yet: the victim is on its way out again": (
        GRANT,
        (a_seen(LLAMA, **UP), a_seen(QWEN)),
        {QWEN: S.STARTING, LLAMA: S.STOPPING},
        4.9,
    ),
    "the victim is gone, the grantee not begun": (
        GRANT,
        (a_seen(LLAMA), a_seen(QWEN)),
        {QWEN: S.STARTING, LLAMA: S.STOPPED},
        4.9,
    ),
    "the container runs, the model is not loaded": (
        GRANT,
        (a_seen(LLAMA), a_seen(QWEN, **UNLOADED)),
        {QWEN: S.STARTING, LLAMA: S.STOPPED},
        4.9,
    ),
    "loaded, the lease not begun": (GRANT, (a_seen(LLAMA), a_seen(QWEN, **UP)), {QWEN: S.READY, LLAMA: S.STOPPED}, 4.9),
    "ready and begun": (BEGUN, (a_seen(LLAMA), a_seen(QWEN, **UP)), {QWEN: S.READY, LLAMA: S.STOPPED}, 4.9),
    "begun, and its place crashed while nobody looked": (
        BEGUN,
        (a_seen(LLAMA), a_seen(QWEN, exit_code=2)),
        {QWEN: S.STARTING, LLAMA: S.STOPPED},
        4.9,
    ),
    "the victim is already gone for good": (GRANT, (a_seen(QWEN),), {QWEN: S.STARTING}, 4.9),
}


@pytest.mark.parametrize(("lease", "seen", "states", "reserved_gib"), MOMENTS.values(), ids=MOMENTS.keys())
def test_a_lease_survives_a_restart_at_every_moment(lease, seen, states, reserved_gib):
    house = Looked().restored(lease, seen=seen)

    assert {} == house.ends()
    assert lease.id == house.tenancy.promises.get(lease.id).id
    assert states == {place: house.state(place) for place in states}
    assert reserved_gib == house.reserved_gib()
    began = house.tenancy.promises.get(lease.id).expires_at_seconds is not None
    assert (states[QWEN] is S.READY or lease is BEGUN) == began


def test_a_restored_grant_takes_over_its_victims_budgets_again():
    house = Looked().restored(GRANT, seen=(a_seen(LLAMA, **UP), a_seen(QWEN)))

    assert QWEN == house.tenancy.view_of(LLAMA).taken_by
    house.look(a_seen(LLAMA), a_seen(QWEN))
    assert (S.STOPPED, S.STARTING) == (house.state(LLAMA), house.state(QWEN))
    assert None is house.tenancy.view_of(LLAMA).taken_by


def test_a_victim_that_is_leased_itself_is_not_stopped_and_the_grant_is_withdrawn():
    other = a_lease(LLAMA, id="l-small", expires_at_seconds=NOW + 60)
    house = Looked().restored(other, GRANT, seen=(a_seen(LLAMA, **UP), a_seen(QWEN)))

    assert {"l-big": "withdrawn"} == house.ends()
    assert (S.READY, S.STOPPED, 2.6) == (house.state(LLAMA), house.state(QWEN), house.reserved_gib())


@pytest.mark.parametrize(
    ("lease", "cause"),
    [
        pytest.param(a_lease(expires_at_seconds=NOW), "expired", id="over meanwhile"),
        pytest.param(a_lease(Place(server="docker:gone", model="m")), "withdrawn", id="its place is gone"),
    ],
)
def test_what_cannot_be_honoured_after_a_restart_ends_with_a_reason(lease, cause):
    house = Looked().restored(lease, seen=(a_seen(LLAMA, **UP),))

    assert {"l-1": cause} == house.ends()
    assert 0 == len(house.tenancy.promises)


def test_leases_wait_for_the_memory_to_be_known_instead_of_being_withdrawn():
    """The daemon looks at its places before telemetry has told it of the host's memory."""
    house = Looked(room_gib=None).restored(GRANT, seen=(a_seen(LLAMA, **UP), a_seen(QWEN)))
    assert {} == house.ends()
    assert (S.STOPPED, S.READY) == (house.state(QWEN), house.state(LLAMA))

    house.room(7.0)
    house.look(a_seen(LLAMA, **UP), a_seen(QWEN))
    assert (S.STARTING, S.STOPPING, 4.9) == (house.state(QWEN), house.state(LLAMA), house.reserved_gib())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("seen", [{}, UNLOADED, UP])
def test_of_several_leases_on_one_place_the_largest_context_counts(order, seen):
    """{**UP}: loaded with 4,096 when the reload to 8,192 was already promised."""
    leases = (a_lease(id="l-a", num_ctx=8192), a_lease(id="l-b", num_ctx=4096))
    house = Looked().restored(*(leases[index] for index in order), seen=(a_seen(LLAMA, **seen),))

    assert (S.STARTING, 8192) == (house.state(LLAMA), house.num_ctx(LLAMA))
    assert 3.1 == house.reserved_gib()
    assert {} == house.ends()


def test_more_context_than_was_leased_is_kept():
    lease = a_lease(num_ctx=4096)
    house = Looked().restored(lease, seen=(a_seen(LLAMA, **{**UP, "loaded_num_ctx": 8192}),))

    assert (S.READY, 8192) == (house.state(LLAMA), house.num_ctx(LLAMA))


def test_a_clock_set_back_does_not_lengthen_a_restored_lease():
    lease = a_lease(seconds=60.0, expires_at_seconds=NOW + 9999)
    house = Looked().restored(lease, seen=(a_seen(LLAMA, **UP),))

    assert house.clock.now_seconds() + 60 == house.tenancy.promises.get(lease.id).expires_at_seconds
