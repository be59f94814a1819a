"""What ends a promise, what a failed or withdrawn start leaves behind, and who waits in line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.errors import NotFound, NotNow
from dispatcher.vocabulary.fleet import Claim, Lease, PlaceState
from tests.builders import LLAMA, NOW, PHI, QWEN
from tests.lifecycle.owned import Owned

S = PlaceState


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_giving_back_twice_is_no_error_and_told_once():
    house = Owned()
    lease = house.reserve(LLAMA)
    house.tenancy.end(lease.id, "returned")
    house.tenancy.end(lease.id, "outcome")

    assert ["returned"] == house.told("ended")
    assert "returned" == house.tenancy.lease(lease.id).ended
    assert None is house.tenancy.lease("never")


def test_giving_back_before_ready_lets_the_load_go_on():
    house = Owned()
    house.tenancy.end(house.reserve(LLAMA).id, "returned")

    assert S.STARTING is house.state(LLAMA)
    assert 2.6 == house.reserved_gib()


def test_the_last_lease_of_a_place_that_is_down_gives_its_memory_back():
    house = Owned()
    lease = house.reserve(LLAMA)
    house.tenancy.ready(LLAMA, 4.0)
    house.tenancy.stopped(LLAMA, "it crashed")
    house.tenancy.end(lease.id, "outcome")

    assert 0 == house.reserved_gib()


def test_a_failed_start_ends_its_leases_and_keeps_its_memory_until_it_is_seen_stopped():
    house = Owned()
    lease = house.reserve(LLAMA)
    house.tenancy.start_failed(LLAMA, "it exited with 1")

    assert "start_failed" == house.tenancy.lease(lease.id).ended
    assert S.STOPPING is house.state(LLAMA)
    assert 2.6 == house.reserved_gib()
    house.tenancy.stopped(LLAMA, "stopped")
    assert 0 == house.reserved_gib()
    assert NOW + 1 == house.view(LLAMA).retry_at_seconds


def test_a_stuck_victim_withdraws_the_grant_and_keeps_its_memory():
    house = Owned()
    house.up(LLAMA)
    lease = house.reserve(QWEN, LLAMA)
    house.tenancy.turn(LLAMA, "stop_overdue", "test")
    house.tenancy.withdraw_grantee_of(LLAMA)

    assert "withdrawn" == house.tenancy.lease(lease.id).ended
    assert (S.STOPPED, S.STUCK) == (house.state(QWEN), house.state(LLAMA))
    assert 2.6 == house.reserved_gib()
    assert "docker:llama is stuck and keeps its memory" == house.view(QWEN).because


def test_a_withdrawn_reload_keeps_the_memory_it_holds():
    house = Owned()
    house.up(LLAMA)
    house.up(PHI)
    house.reserve(LLAMA, PHI, num_ctx=16384)
    assert 3.9 == house.reserved_gib()
    house.tenancy.turn(PHI, "stop_overdue", "test")
    house.tenancy.withdraw_grantee_of(PHI)

    assert 6.4 == house.reserved_gib(), "3.8 of phi that is stuck, 2.6 of llama that still runs"


def test_a_place_that_vanishes_ends_its_leases_and_frees_its_memory():
    house = Owned()
    lease = house.reserve(LLAMA)
    house.tenancy.forget(LLAMA)

    assert "withdrawn" == house.tenancy.lease(lease.id).ended
    assert 0 == house.reserved_gib()
    assert None is house.view(LLAMA)


def test_a_renewed_lease_begins_anew():
    house = Owned()
    house.up(LLAMA)
    lease = house.reserve(LLAMA)
    house.clock.advance(50.0)

    assert house.clock.now_seconds() + 60 == house.tenancy.renew(lease.id).expires_at_seconds
    assert [""] == house.told("renewed")


def test_a_lease_that_waits_for_ready_is_renewed_without_beginning():
    house = Owned()

    assert None is house.tenancy.renew(house.reserve(LLAMA).id).expires_at_seconds


def test_what_is_over_or_was_never_there_cannot_be_renewed():
    house = Owned()
    lease = house.reserve(LLAMA)
    house.tenancy.end(lease.id, "expired")

    with pytest.raises(NotNow, match=rf"lease {lease.id} is over \(expired\)"):
        house.tenancy.renew(lease.id)
    with pytest.raises(NotFound, match="no lease l-unknown"):
        house.tenancy.renew("l-unknown")


# ── claims ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def claimed() -> Owned:
    house = Owned()
    house.up(LLAMA)
    house.reserve(LLAMA, by="d-small")
    claim = Claim(place=QWEN, victims=(LLAMA,), decision_id="d-big", until_seconds=house.clock.now_seconds() + 60)
    assert house.tenancy.claim(claim)
    return house


def test_a_claimed_place_takes_no_new_leases_but_those_of_the_claimant():
    house = claimed()

    assert "docker:llama takes no new leases: qwen2.5:7b waits for its memory" == house.reserve(LLAMA, by="d-2")
    assert isinstance(house.reserve(LLAMA, by="d-big"), Lease)


def test_a_claim_ends_with_its_time_or_when_it_is_given_up():
    house = claimed()
    house.clock.advance(61.0)
    assert isinstance(house.reserve(LLAMA, by="d-2"), Lease)

    house = claimed()
    house.tenancy.unclaim("d-big")
    assert isinstance(house.reserve(LLAMA, by="d-2"), Lease)


def test_the_dwell_of_a_claimed_place_does_not_hold_up_the_claimant():
    house = Owned()
    house.up(LLAMA, dwells=True)
    lease = house.reserve(LLAMA, by="d-small")
    house.tenancy.claim(Claim(place=QWEN, victims=(LLAMA,), decision_id="d-big", until_seconds=NOW + 60))
    house.tenancy.end(lease.id, "outcome")

    assert isinstance(house.reserve(QWEN, LLAMA, by="d-big"), Lease)


def test_a_claim_said_again_changes_nothing_and_one_that_never_was_wakes_nobody():
    house = claimed()
    claim, shown = house.tenancy.promises.claim_of("d-big"), house.view(LLAMA)
    before = house.notified

    assert house.tenancy.claim(replace(claim))
    assert shown is house.view(LLAMA), "not built anew"
    house.tenancy.unclaim("d-other")
    assert before == house.notified
    house.tenancy.unclaim("d-big")
    assert before + 1 == house.notified
    assert None is house.view(LLAMA).claimed_for


def test_a_lease_that_is_renewed_is_one_to_write_down():
    house = Owned()
    lease = house.tenancy.reserve(place=LLAMA, num_ctx=4096, evicts=(), decision_id="d-1", seconds=60.0, durable=False)

    assert (False, None) == (lease.durable, lease.expires_at_seconds)
    assert house.tenancy.renew(lease.id).durable
    assert house.tenancy.promises.get(lease.id).durable


def test_a_grantee_told_to_stop_and_stuck_with_its_victim_still_counts():
    """The engine answered neither stop. Whether the grantee's start was under way by then, nobody knows."""
    house = Owned()
    house.up(QWEN)
    house.reserve(LLAMA, QWEN)
    before_gib = house.reserved_gib()

    house.tenancy.end_all(LLAMA, "withdrawn")
    house.tenancy.stop(LLAMA, "asked", "stopped by hand while starting")
    for place in (QWEN, LLAMA):
        house.tenancy.turn(place, "stop_overdue", "the engine was silent")
        house.tenancy.withdraw_grantee_of(place)

    assert [PlaceState.STUCK, PlaceState.STUCK] == [house.state(QWEN), house.state(LLAMA)]
    assert house.view(LLAMA).budget_bytes > 0
    assert before_gib == house.reserved_gib()
