"""When an idle model is stopped, and what keeps it; in virtual time, on a fake engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.control.ledger import reserved_bytes
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import GIB
from tests.builders import LLAMA, a_snapshot
from tests.virtual_house import House, a_house, ready
from tests.virtual_time import in_virtual_time

S = PlaceState
SMALL = 8 * GIB  # 7 of room: llama and qwen do not fit together


@in_virtual_time
async def test_an_idle_model_is_stopped_after_its_keep_alive(clock):
    house = a_house(clock, idle_seconds=100.0)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        ended = clock.now_seconds()
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)

        assert 100 <= house.engine.did("stop", LLAMA)[0].at_seconds - ended <= 106
        assert ["idle"] == [acted.action.cause for acted in house.acted() if acted.action.cause == "idle"]
        assert 0 == reserved_bytes(house.controller.tenancy.ledger)


async def _leased(house: House) -> None:
    house.lease(LLAMA, seconds=900.0)


async def _in_flight(house: House) -> None:
    house.in_flight[LLAMA] = 1


async def _busy(house: House) -> None:
    house.engine.work(LLAMA, 0.3)


async def _pinned(house: House) -> None:
    house.controller.tenancy.pinned_model = "llama3.2:3b"


KEPT = {"leased": _leased, "in flight": _in_flight, "busy by its CPU": _busy, "pinned": _pinned}


@pytest.mark.parametrize("use", KEPT.values(), ids=KEPT.keys())
@in_virtual_time
async def test_what_is_used_is_not_idle(clock, use):
    house = a_house(clock, idle_seconds=40.0)
    async with house.open():
        house.give_back(await ready(house, LLAMA, dwelt=False))
        await use(house)
        await asyncio.sleep(600.0)

        assert S.READY is house.state(LLAMA)


@in_virtual_time
async def test_a_cpu_below_the_busy_threshold_is_idle(clock):
    house = a_house(clock, idle_seconds=40.0)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.work(LLAMA, 0.1)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)


@in_virtual_time
async def test_idle_time_counts_from_the_end_of_the_last_use(clock):
    house = a_house(clock, idle_seconds=40.0)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.work(LLAMA, 2.0)
        await asyncio.sleep(300.0)
        house.engine.work(LLAMA, 0.0)
        quiet = clock.now_seconds()
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)

        assert 40 <= house.engine.did("stop")[0].at_seconds - quiet <= 52


@in_virtual_time
async def test_a_place_in_its_dwell_is_not_stopped(clock):
    house = a_house(clock, idle_seconds=1.0, dwell_seconds=200.0)
    async with house.open():
        house.give_back(await ready(house, LLAMA, dwelt=False))
        became_ready = clock.now_seconds()
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)

        assert house.engine.did("stop")[0].at_seconds - became_ready >= 199


@in_virtual_time
async def test_hard_memory_stops_the_last_idle_model_and_never_a_leased_one(clock):
    house = a_house(clock)
    async with house.open():
        lease = await ready(house, LLAMA)
        full = {"host_memory_available_bytes": 1.0}
        house.snapshot = lambda: a_snapshot(latches=frozenset({"memory_hard"}), readings=full)
        await asyncio.sleep(30.0)
        assert S.READY is house.state(LLAMA)

        house.give_back(lease)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        assert "pressure" == house.acted()[-1].action.cause


@in_virtual_time
async def test_a_drain_waits_for_what_its_place_still_computes(clock):
    house = a_house(clock)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.work(LLAMA, 2.0)
        await asyncio.sleep(12.0)
        house.controller.ask_stop(LLAMA)
        await asyncio.sleep(30.0)
        assert S.DRAINING is house.state(LLAMA)

        house.engine.work(LLAMA, 0.0)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)


# ── after a restart ───────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_after_a_restart_a_stop_by_hand_waits_until_the_cpu_is_told_and_then_for_what_is_computed(clock):
    house = a_house(clock)
    house.engine.up(LLAMA)
    house.engine.work(LLAMA, 2.0)
    async with house.open():
        house.controller.ask_stop(LLAMA)
        await asyncio.sleep(60.0)
        assert S.DRAINING is house.state(LLAMA)

        house.engine.work(LLAMA, 0.0)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)


@pytest.mark.parametrize(("shared", "least_seconds", "most_seconds"), [(False, 15, 25), (True, 0, 7)])
@in_virtual_time
async def test_where_no_cpu_is_ever_told_a_stop_by_hand_waits_for_it_no_longer_than_for_three_looks(
    clock, shared, least_seconds, most_seconds
):
    house = a_house(clock)
    house.engine.up(LLAMA)
    seen = house.engine.list

    async def without_cpu():
        return [replace(one, cpu_seconds_total=None, cpu_at_seconds=None, shared=shared) for one in await seen()]

    house.engine.list = without_cpu
    async with house.open():
        began = clock.now_seconds()
        house.controller.ask_stop(LLAMA)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)

        assert least_seconds <= clock.now_seconds() - began <= most_seconds
