"""The owner, synchronously: the one admission rule, whose word a promise is, and what ends it. No loop runs here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.vocabulary.event import Turned
from dispatcher.vocabulary.fleet import Claim, Lease, Place, PlaceState
from dispatcher.vocabulary.settings import GIB
from tests.builders import LLAMA, NOW, PHI, QWEN
from tests.lifecycle.owned import Owned

S = PlaceState


# ── the admission rule ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_grant_starts_the_place_counts_its_memory_and_says_so():
    house = Owned()
    lease = house.reserve(LLAMA)

    assert S.STARTING is house.state(LLAMA)
    assert 2.6 == house.reserved_gib()
    assert (60.0, NOW, None) == (lease.seconds, lease.granted_at_seconds, lease.expires_at_seconds)
    assert [""] == house.told("granted")
    assert house.woken
    assert (1, True) == (house.view(LLAMA).leases, house.view(LLAMA).busy)


def test_a_lease_counts_as_in_flight_from_its_grant_but_its_time_runs_from_ready_on():
    house = Owned()
    lease = house.reserve(LLAMA, seconds=60.0)
    house.clock.advance(500.0)
    house.tenancy.ready(LLAMA, 500.0)

    assert NOW + 560 == house.tenancy.lease(lease.id).lease.expires_at_seconds
    assert [""] == house.told("ready")


def test_what_is_ready_is_leased_from_now_on():
    house = Owned()
    house.up(LLAMA)

    assert house.clock.now_seconds() + 60 == house.reserve(LLAMA).expires_at_seconds


@pytest.mark.parametrize(("asked", "given"), [(30.0, 30.0), (900.0, 900.0), (901.0, 900.0)])
def test_no_lease_is_longer_than_the_longest(asked, given):
    assert given == Owned().reserve(LLAMA, seconds=asked).seconds


def test_leaving_it_starts_nothing_and_what_is_ready_can_still_be_leased():
    house = Owned()
    house.up(PHI)
    house.tenancy.leaving = True

    assert "shutting down" in house.reserve(LLAMA)
    assert "shutting down" in house.tenancy.take(LLAMA, 4096, (), "asked")
    assert (S.STOPPED, S.READY) == (house.state(LLAMA), house.state(PHI))
    assert isinstance(house.reserve(PHI), Lease)


def test_what_does_not_fit_is_refused_in_words():
    house = Owned()
    house.reserve(LLAMA)

    assert "the ledger refused: needs 4.9 GiB, 4.4 GiB not promised yet" == house.reserve(QWEN)
    assert S.STOPPED is house.state(QWEN)
    assert 2.6 == house.reserved_gib()


def test_a_grant_that_evicts_takes_over_its_victims_budgets_and_sends_them_out():
    house = Owned()
    house.up(LLAMA)
    lease = house.reserve(QWEN, LLAMA)

    assert (LLAMA,) == lease.evicts
    assert (S.STARTING, S.STOPPING) == (house.state(QWEN), house.state(LLAMA))
    assert 4.9 == house.reserved_gib()
    assert "docker:llama is making room for qwen2.5:7b" == house.reserve(LLAMA)


NO_VICTIM = {
    "leased": lambda house: house.reserve(LLAMA, by="d-2"),
    "in flight": lambda house: house.in_flight.update({LLAMA: 1}),
    "pinned": lambda house: setattr(house.tenancy, "pinned_model", "llama3.2:3b"),
    "claimed by another": lambda house: house.tenancy.claim(
        Claim(place=PHI, victims=(LLAMA,), decision_id="d-9", until_seconds=NOW + 999)
    ),
}


@pytest.mark.parametrize("use", NO_VICTIM.values(), ids=NO_VICTIM.keys())
def test_a_victim_that_came_into_use_meanwhile_refuses_the_grant(use):
    house = Owned()
    house.up(LLAMA)
    use(house)

    assert "docker:llama may no longer be stopped" == house.reserve(QWEN, LLAMA)
    assert S.READY is house.state(LLAMA)


def test_a_victim_in_its_dwell_refuses_the_grant():
    house = Owned()
    house.up(LLAMA, dwells=True)

    assert "docker:llama may no longer be stopped" == house.reserve(QWEN, LLAMA)


def test_a_place_that_is_not_there_refuses():
    assert "docker:x is not there any more" == Owned().reserve(Place(server="docker:x", model="m"))


@pytest.mark.parametrize("state", [S.STOPPING, S.STUCK, S.DRAINING])
def test_a_place_on_its_way_out_takes_no_leases(state):
    house = Owned()
    house.up(LLAMA)
    for event in {S.STOPPING: ["stop_asked"], S.STUCK: ["stop_asked", "stop_overdue"], S.DRAINING: ["drain_asked"]}[
        state
    ]:
        house.tenancy.turn(LLAMA, event, "test")

    assert f"docker:llama is {state.value}" == house.reserve(LLAMA)


def test_a_silent_engine_starts_nothing_but_leases_what_runs():
    house = Owned()
    house.up(LLAMA)
    house.tenancy.failing = "no answer within 5 s"

    assert "the engine cannot be asked: no answer within 5 s" == house.reserve(PHI)
    assert isinstance(house.reserve(LLAMA), Lease)


def test_nobody_knows_the_memory_nothing_is_granted():
    house = Owned()
    house.tenancy.ledger = replace(house.tenancy.ledger, room_bytes=None)

    assert "the ledger does not know the host's memory" == house.reserve(LLAMA)


def test_only_so_many_leases_live():
    house = Owned(max_leases=2)
    house.reserve(LLAMA)
    house.reserve(LLAMA)

    assert "2 leases are alive, the most allowed; give back what is done" == house.reserve(LLAMA)


def test_a_second_request_joins_a_start_and_begins_none():
    house = Owned()
    house.reserve(LLAMA)
    house.reserve(LLAMA, by="d-2")
    turns = [event.after for event in house.events if isinstance(event, Turned)]

    assert ["starting"] == turns
    assert 2.6 == house.reserved_gib()
    assert 2 == house.view(LLAMA).leases


# ── reloads ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_more_context_than_is_loaded_is_a_reload_that_counts_as_the_larger():
    house = Owned()
    house.up(LLAMA)
    lease = house.reserve(LLAMA, num_ctx=8192)

    assert S.STARTING is house.state(LLAMA)
    assert 3.1 == house.reserved_gib()
    assert None is lease.expires_at_seconds


def test_a_reload_to_less_gives_memory_back_when_it_is_loaded():
    house = Owned()
    house.up(LLAMA, num_ctx=16384)
    house.tenancy.turn(LLAMA, "drain_asked", "test")
    assert 3.9 == house.reserved_gib()
    house.tenancy.residents[LLAMA] = replace(house.tenancy.residents[LLAMA], num_ctx=4096)
    house.tenancy.turn(LLAMA, "start_asked", "test")
    house.tenancy.ready(LLAMA, None)

    assert 2.6 == house.reserved_gib()


def test_a_reload_never_happens_while_the_place_is_used():
    house = Owned()
    house.up(LLAMA)
    house.reserve(LLAMA)

    assert "docker:llama is in use with another context" == house.reserve(LLAMA, num_ctx=8192)


def test_a_start_with_too_little_context_is_not_joined():
    house = Owned()
    house.reserve(LLAMA)

    assert "docker:llama is starting" == house.reserve(LLAMA, num_ctx=8192)


def test_what_is_down_while_leased_comes_back_with_what_was_promised():
    house = Owned()
    house.reserve(LLAMA, num_ctx=8192)
    house.tenancy.ready(LLAMA, 4.0)
    house.tenancy.stopped(LLAMA, "it crashed")

    assert 3.1 == house.reserved_gib(), "its lease keeps its share"
    house.reserve(LLAMA, num_ctx=4096, by="d-2")
    assert 8192 == house.tenancy.residents[LLAMA].num_ctx
    assert 3.1 == house.reserved_gib()


def test_a_capacity_lowered_by_a_reload_is_what_may_be_promised_from_then_on():
    house = Owned(capacity_bytes=8 * GIB)
    house.up(LLAMA)
    house.settings = replace(house.settings, lifecycle=replace(house.settings.lifecycle, capacity_bytes=5 * GIB))
    house.tenancy.apply()

    assert 4 * GIB == house.tenancy.ledger.room_bytes
    assert house.reserve(PHI).startswith("the ledger refused: needs 3.8 GiB, 1.4 GiB not promised yet")
    assert isinstance(house.reserve(LLAMA), Lease), "what runs is promised as before"


def test_without_a_word_in_the_settings_a_reload_leaves_the_hosts_own_memory():
    house = Owned(room_gib=7.0)
    house.tenancy.apply()

    assert 7 * GIB == house.tenancy.ledger.room_bytes
