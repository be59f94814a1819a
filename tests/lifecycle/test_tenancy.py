"""The owner, synchronously: the one admission rule, whose word a promise is, and what ends it. No loop runs here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.clock import ManualClock
from dispatcher.errors import NotFound, NotNow
from dispatcher.lifecycle.resident import Resident, cpu_cores, dwell_seconds, looked_at
from dispatcher.lifecycle.tenancy import Tenancy
from dispatcher.vocabulary.event import Event, Leased, Turned
from dispatcher.vocabulary.fleet import Claim, Lease, Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import GIB, LifecycleSettings, Settings
from tests.builders import LLAMA, NOW, PHI, QWEN, a_seen, a_snapshot, some_profiles

S = PlaceState


class Owned:
    """A tenancy of three stopped places in 8 GiB less 1 of reserve: llama and qwen together do not fit."""

    def __init__(self, room_gib: float = 7.0, profiles: Profiles | None = None, **rules) -> None:
        self.clock = ManualClock(NOW)
        self.events: list[Event] = []
        self.in_flight: dict[Place, int] = {}
        self.woken = 0
        self.settings = replace(Settings(), lifecycle=LifecycleSettings(**rules))
        self.tenancy = Tenancy(
            settings=lambda: self.settings,
            clock=self.clock,
            snapshot=a_snapshot,
            profiles=lambda: profiles or some_profiles(),
            emit=self.events.append,
            in_flight=lambda place: self.in_flight.get(place, 0),
            jitter=lambda: 1.0,
            wake=self._wake,
            notify=lambda: None,
        )
        self.tenancy.failing = None
        self.tenancy.total_bytes = (room_gib + 1) * GIB
        self.tenancy.ledger = replace(self.tenancy.ledger, room_bytes=round(room_gib * GIB))
        for place in (PHI, LLAMA, QWEN):
            self.tenancy.residents[place] = Resident(seen=a_seen(place))

    def _wake(self) -> None:
        self.woken += 1

    def reserve(self, place: Place, *evicts: Place, num_ctx: int = 4096, seconds: float = 60.0, by: str = "d-1"):
        return self.tenancy.reserve(place=place, num_ctx=num_ctx, evicts=evicts, decision_id=by, seconds=seconds)

    def up(self, place: Place, *, dwells: bool = False, num_ctx: int = 4096) -> None:
        """Started by hand and loaded."""
        assert None is self.tenancy.take(place, num_ctx, (), "asked")
        seen = a_seen(place, running=True, answers=True, loaded=True, loaded_num_ctx=num_ctx)
        self.tenancy.residents[place] = replace(self.tenancy.residents[place], seen=seen)
        self.tenancy.ready(place, 4.0)
        if not dwells:
            self.clock.advance(30.0)
            self.tenancy.changed()

    def state(self, place: Place) -> PlaceState:
        return self.tenancy.residents[place].state

    def view(self, place: Place):
        return self.tenancy.view_of(place)

    def reserved_gib(self) -> float:
        return round(self.tenancy.view().reserved_bytes / GIB, 1)

    def told(self, what: str) -> list[str]:
        return [event.cause for event in self.events if isinstance(event, Leased) and event.what == what]


# ── the admission rule ──────────────────────────────────────────────────────────────────────────────────────────────


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


# ── reloads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── claims ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_view_is_built_again_only_for_what_has_changed():
    house = Owned()
    house.up(LLAMA)
    before = {view.place: view for view in house.tenancy.view().places}
    house.reserve(LLAMA)
    after = {view.place: view for view in house.tenancy.view().places}

    assert before[PHI] is after[PHI]
    assert before[LLAMA] is not after[LLAMA]


def test_a_pin_shows_at_once():
    house = Owned()
    assert not house.view(LLAMA).pinned
    house.tenancy.pinned_model = "llama3.2:3b"

    assert house.view(LLAMA).pinned
    assert not house.view(PHI).pinned


def test_the_eta_counts_down():
    house = Owned()
    house.reserve(LLAMA)

    assert 5.0 == house.view(LLAMA).eta_seconds
    house.clock.advance(2.0)
    assert 3.0 == house.view(LLAMA).eta_seconds
    house.clock.advance(60.0)
    assert 0.0 == house.view(LLAMA).eta_seconds


def test_what_was_evicted_with_a_priority_raises_the_floor_for_those_used_later():
    """Greedy-dual's L: what is used after an eviction outranks what was not used since."""
    profiles = some_profiles(wanted_per_second={"llama3.2:3b": 1.0, "phi3:mini": 1.0})
    house = Owned(room_gib=12.0, profiles=profiles)
    house.up(LLAMA)
    house.up(PHI)
    evicted = house.view(LLAMA).keep_priority
    unused = house.view(PHI).keep_priority
    house.tenancy.end(house.reserve(QWEN, LLAMA).id, "returned")
    house.tenancy.end(house.reserve(PHI).id, "outcome")

    assert pytest.approx(unused + evicted) == house.view(PHI).keep_priority


# ── dwell and CPU ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("turns", "load_seconds", "expected"),
    [
        pytest.param(1, 4.0, 30.0, id="the least"),
        pytest.param(1, 20.0, 60.0, id="three times the load"),
        pytest.param(3, 4.0, 30.0, id="three turns in ten minutes are normal"),
        pytest.param(4, 4.0, 60.0, id="more double it"),
        pytest.param(6, 4.0, 240.0, id="and double it"),
        pytest.param(16, 20.0, 1800.0, id="to half an hour"),
    ],
)
def test_flapping_doubles_the_dwell(turns, load_seconds, expected):
    assert expected == dwell_seconds((NOW,) * turns, NOW + 1, 30.0, load_seconds)


def test_old_turns_are_forgotten():
    assert 30.0 == dwell_seconds((NOW,) * 9, NOW + 600, 30.0, 4.0)


RUN = {"running": True, "started_at_seconds": NOW}
CPU = {
    "two cores": ((0.0, NOW, NOW), (10.0, NOW + 5, NOW), 2.0),
    "none": ((10.0, NOW, NOW), (10.0, NOW + 5, NOW), 0.0),
    "another run": ((10.0, NOW, NOW), (1.0, NOW + 5, NOW + 1), None),
    "not said before": ((None, NOW, NOW), (1.0, NOW + 5, NOW), None),
    "not said now": ((1.0, NOW, NOW), (None, NOW + 5, NOW), None),
    "the same moment": ((1.0, NOW, NOW), (1.0, NOW, NOW), None),
}


@pytest.mark.parametrize(("before", "after", "expected"), CPU.values(), ids=CPU.keys())
def test_cpu_is_the_difference_of_two_looks_at_the_same_run(before, after, expected):
    first, second = (
        a_seen(running=True, cpu_seconds_total=total, cpu_at_seconds=at, started_at_seconds=started)
        for total, at, started in (before, after)
    )

    assert expected == cpu_cores(first, second)


def test_a_stopped_place_has_no_cpu():
    busy = a_seen(cpu_seconds_total=10.0, cpu_at_seconds=NOW + 5, **RUN)
    resident = looked_at(Resident(seen=a_seen(cpu_seconds_total=0.0, cpu_at_seconds=NOW, **RUN)), busy, NOW + 5)

    assert 2.0 == resident.cpu.value
    assert None is looked_at(resident, a_seen(), NOW + 10).cpu.value
