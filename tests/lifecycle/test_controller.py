"""The loop, in virtual time, on a fake engine: what it starts and stops, when, and what it leaves alone."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.control.ledger import reserved_bytes
from dispatcher.errors import NotFound, NotNow
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.settings import GIB
from tests.builders import LLAMA, PHI, QWEN
from tests.fake_engine import footprint
from tests.virtual_house import a_house, ready
from tests.virtual_time import in_virtual_time

S = PlaceState
SMALL = 8 * GIB  # 7 of room: llama and qwen do not fit together


# ── starting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_one_start_per_place_however_many_ask(clock):
    house = a_house(clock)
    async with house.open():
        leases = [house.lease(LLAMA) for _ in range(25)]
        await house.until(lambda: house.state(LLAMA) is S.READY)

        assert 1 == len(house.engine.did("start"))
        assert 1 == len(house.engine.did("load"))
        ends = {house.controller.tenancy.lease(lease.id).lease.expires_at_seconds for lease in leases}
        assert 1 == len(ends), "they all begin at ready"


@in_virtual_time
async def test_the_time_of_a_lease_begins_at_ready(clock):
    house = a_house(clock, engine={"load_seconds": 100.0})
    async with house.open():
        lease = house.lease(LLAMA, seconds=60.0)
        await asyncio.sleep(90.0)
        assert None is house.controller.tenancy.lease(lease.id).lease.expires_at_seconds
        status = await house.controller.ready(lease.id, clock.now_seconds() + 60)

        assert (S.READY, 0.0) == (status.state, status.eta_seconds)
        assert pytest.approx(clock.now_seconds() + 60, abs=0.1) == status.lease.expires_at_seconds
        await asyncio.sleep(59.0)
        assert {} == house.ends()
        await asyncio.sleep(2.0)
        assert {lease.id: "expired"} == house.ends()


@in_virtual_time
async def test_a_lease_ends_within_a_second_of_its_time(clock):
    house = a_house(clock)
    async with house.open():
        await ready(house, LLAMA)
        lease = house.lease(LLAMA, seconds=33.3)
        await asyncio.sleep(33.2)
        assert lease.id not in house.ends()
        await asyncio.sleep(0.3)
        assert "expired" == house.ends()[lease.id]


@in_virtual_time
async def test_places_are_started_side_by_side(clock):
    house = a_house(clock)
    async with house.open():
        began = clock.now_seconds()
        for place in (PHI, LLAMA, QWEN):
            house.lease(place)
        await house.until(lambda: all(house.state(place) is S.READY for place in (PHI, LLAMA, QWEN)))

        assert clock.now_seconds() - began < 6.0


@in_virtual_time
async def test_waiting_for_ready_ends_with_the_patience_or_the_lease(clock):
    house = a_house(clock, engine={"load_seconds": 50.0})
    async with house.open():
        lease = house.lease(LLAMA)
        status = await house.controller.ready(lease.id, clock.now_seconds() + 10)
        assert (S.STARTING, None) == (status.state, status.ended)

        waiting = asyncio.create_task(house.controller.ready(lease.id, clock.now_seconds() + 30))
        await asyncio.sleep(1.0)
        house.give_back(lease)
        assert "returned" == (await waiting).ended
        assert None is await house.controller.ready("l-unknown", clock.now_seconds() + 30)


# ── evicting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_victim_is_seen_stopped_before_the_grantee_starts(clock):
    house = a_house(clock, total_bytes=SMALL, engine={"stop_seconds": 7.0})
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.lease(QWEN, evicts=[LLAMA])
        await house.until(lambda: house.state(QWEN) is S.READY)
        calls = [(call.verb, call.place) for call in house.engine.calls]
        stopped = house.engine.did("stopped", LLAMA)[0].at_seconds

        assert [("stop", LLAMA), ("stopped", LLAMA), ("start", QWEN)] == calls[4:7]
        assert house.engine.did("start", QWEN)[0].at_seconds - stopped < 1.0
        assert footprint(QWEN) == house.engine.peak_bytes, "never both at once"
        assert ["starting", "ready", "stopping", "stopped"] == house.turns(LLAMA)
        assert ["leased", "evicted"] == [acted.action.cause for acted in house.acted() if acted.action.place == LLAMA]


@in_virtual_time
async def test_two_victims_are_both_waited_for(clock):
    house = a_house(clock, total_bytes=round(8.6 * GIB), engine={"stop_seconds": 1.0})
    house.engine.servers[PHI].stop_seconds = 9.0
    async with house.open():
        for lease in (await ready(house, LLAMA), await ready(house, PHI)):
            house.give_back(lease)
        house.lease(QWEN, evicts=[LLAMA, PHI])
        await house.until(lambda: house.state(QWEN) is S.READY)

        assert house.engine.did("start", QWEN)[0].at_seconds > house.engine.did("stopped", PHI)[0].at_seconds


@in_virtual_time
async def test_a_stuck_victim_withdraws_the_grant_and_keeps_its_memory(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.servers[LLAMA].hang_stop = True
        lease = house.lease(QWEN, evicts=[LLAMA])
        await house.until(lambda: lease.id in house.ends())

        assert "withdrawn" == house.ends()[lease.id]
        assert (S.STOPPED, S.STUCK) == (house.state(QWEN), house.state(LLAMA))
        assert [] == house.engine.did("start", QWEN)
        assert footprint(LLAMA) == reserved_bytes(house.controller.tenancy.ledger)

        house.engine.servers[LLAMA].hang_stop = False  # the next try succeeds, within a minute or so
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        assert 0 == reserved_bytes(house.controller.tenancy.ledger)
        house.lease(QWEN)
        await house.until(lambda: house.state(QWEN) is S.READY)


@in_virtual_time
async def test_a_stuck_place_is_told_to_stop_again_once_a_minute_not_more(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.servers[LLAMA].hang_stop = True
        house.lease(QWEN, evicts=[LLAMA])
        await asyncio.sleep(600.0)

        assert S.STUCK is house.state(LLAMA)
        assert 8 <= len(house.engine.did("stop", LLAMA)) <= 12


@in_virtual_time
async def test_an_engine_that_refuses_to_stop_is_not_asked_in_a_tight_loop(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.servers[LLAMA].refuse_stop = True
        house.lease(QWEN, evicts=[LLAMA])
        await house.until(lambda: house.state(LLAMA) is S.STUCK)

        assert len(house.engine.did("stop", LLAMA)) <= 40


@in_virtual_time
async def test_a_reload_stops_nobody_and_waits_for_nobody(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        lease = house.lease(LLAMA, num_ctx=8192)
        status = await house.controller.ready(lease.id, clock.now_seconds() + 60)

        assert (S.READY, 8192) == (status.state, house.view(LLAMA).num_ctx)
        assert [] == house.engine.did("stop")
        assert footprint(LLAMA, 8192) == reserved_bytes(house.controller.tenancy.ledger)


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_drain_waits_for_leases_and_takes_no_new_ones(clock):
    house = a_house(clock)
    async with house.open():
        lease = await ready(house, LLAMA)
        house.controller.ask_stop(LLAMA)
        await asyncio.sleep(60.0)
        assert S.DRAINING is house.state(LLAMA)
        with pytest.raises(NotNow, match="docker:llama is draining"):
            house.controller.hold(LLAMA, 4096, (), "asked")

        house.give_back(lease)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)


@in_virtual_time
async def test_a_start_is_stopped_by_hand_at_once(clock):
    house = a_house(clock, engine={"load_seconds": 100.0})
    async with house.open():
        lease = house.lease(LLAMA)
        await asyncio.sleep(10.0)
        house.controller.ask_stop(LLAMA)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED, within_seconds=10)

        assert {lease.id: "withdrawn"} == house.ends()
        assert (0, 0) == (house.engine.held_bytes(), reserved_bytes(house.controller.tenancy.ledger))


@in_virtual_time
async def test_a_start_that_still_waits_for_its_victim_is_stopped_by_hand(clock):
    house = a_house(clock, total_bytes=SMALL, engine={"stop_seconds": 10.0})
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.lease(QWEN, evicts=[LLAMA])
        await asyncio.sleep(1.0)
        house.controller.ask_stop(QWEN)
        await house.until(lambda: house.state(QWEN) is S.STOPPED and house.state(LLAMA) is S.STOPPED)

        assert [] == house.engine.did("load", QWEN)
        assert 0 == reserved_bytes(house.controller.tenancy.ledger)


@in_virtual_time
async def test_what_is_held_by_hand_needs_no_lease_and_obeys_the_ledger(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        house.controller.hold(LLAMA, 4096, (), "asked")
        await house.until(lambda: house.state(LLAMA) is S.READY)

        with pytest.raises(NotNow, match=r"the ledger refused: needs 4\.9 GiB"):
            house.controller.hold(QWEN, 4096, (), "asked")
        with pytest.raises(NotNow, match="there is nothing to stop"):
            house.controller.ask_stop(QWEN)
        with pytest.raises(NotFound, match="no place docker:x"):
            house.controller.ask_stop(Place(server="docker:x", model="m"))
