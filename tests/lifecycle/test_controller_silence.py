"""Paused containers, dead model servers, starts nobody answered for, kernels that kill; in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.control.ledger import reserved_bytes
from dispatcher.vocabulary.fleet import PlaceState
from tests.builders import LLAMA
from tests.fake_engine import footprint
from tests.virtual_house import a_house, ready
from tests.virtual_time import in_virtual_time

S = PlaceState


def reserved(house) -> int:
    return reserved_bytes(house.controller.tenancy.ledger)


# ── paused ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_paused_place_keeps_its_state_and_its_memory_and_is_shown_as_silent(clock):
    house = a_house(clock, idle_seconds=60.0)
    async with house.open():
        house.give_back(await ready(house, LLAMA, dwelt=False))
        house.engine.servers[LLAMA].paused = True
        await asyncio.sleep(300.0)

        view = house.view(LLAMA)
        assert (S.READY, False, "its container is paused") == (view.state, view.answers, view.because)
        assert footprint(LLAMA) == reserved(house)
        assert not view.evictable(clock.now_seconds())
        refusal = house.controller.tenancy.take(LLAMA, 4096, (), "asked")
        assert f"{LLAMA} is silent: its container is paused" == refusal

        house.engine.servers[LLAMA].paused = False
        await asyncio.sleep(6.0)
        assert (S.READY, True) == (house.state(LLAMA), house.view(LLAMA).answers)
        assert 1 == len(house.engine.did("load"))


@pytest.mark.parametrize("num_ctx", [4096, None], ids=["loaded", "not loaded"])
@in_virtual_time
async def test_what_is_paused_at_the_first_look_counts_and_is_not_started_until_it_goes_on(clock, num_ctx):
    house = a_house(clock)
    house.engine.up(LLAMA, num_ctx)
    house.engine.servers[LLAMA].paused = True
    async with house.open():
        await asyncio.sleep(120.0)
        assert (footprint(LLAMA), False) == (reserved(house), house.view(LLAMA).answers)
        assert [] == house.engine.calls

        house.engine.servers[LLAMA].paused = False
        await asyncio.sleep(20.0)
        assert (S.READY, True, footprint(LLAMA)) == (house.state(LLAMA), house.view(LLAMA).answers, reserved(house))


@in_virtual_time
async def test_a_paused_place_can_be_stopped_by_hand(clock):
    house = a_house(clock)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.servers[LLAMA].paused = True
        await asyncio.sleep(6.0)
        house.controller.ask_stop(LLAMA)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)

        assert 0 == reserved(house)


# ── starts that nobody answered for ───────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_stop_by_hand_during_a_slow_start_call_waits_for_it_and_leaves_nothing_running(clock):
    house = a_house(clock, engine={"start_seconds": 25.0, "start_goes_on": True}, stop_timeout_seconds=10.0)
    async with house.open():
        house.controller.hold(LLAMA, 4096, (), "asked")
        await asyncio.sleep(5.0)
        house.controller.ask_stop(LLAMA)
        await asyncio.sleep(15.0)
        assert (S.STOPPING, footprint(LLAMA)) == (house.state(LLAMA), reserved(house))
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        await asyncio.sleep(60.0)

        assert ["starting", "stopping", "stopped"] == house.turns(LLAMA)
        assert (0, 0) == (reserved(house), len(house.engine.did("load")))
        assert not house.engine.servers[LLAMA].running


@in_virtual_time
async def test_a_start_that_outlasts_its_deadline_counts_until_a_stop_was_answered(clock):
    house = a_house(clock, engine={"start_seconds": 45.0, "start_goes_on": True}, stop_timeout_seconds=5.0)
    async with house.open():
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends())
        assert "start_timeout" == house.acted()[0].error_type
        await asyncio.sleep(10.0)  # its stop was not answered in time, and no look has seen it run yet
        assert (S.STUCK, footprint(LLAMA)) == (house.state(LLAMA), reserved(house))
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        await asyncio.sleep(60.0)

        assert ["starting", "stopping", "stuck", "stopped"] == house.turns(LLAMA)
        assert (0, False) == (reserved(house), house.engine.servers[LLAMA].running)


@in_virtual_time
async def test_a_stop_by_hand_of_a_place_that_waits_to_be_started_again_ends_what_it_waits_for(clock):
    house = a_house(clock, backoff_min_seconds=30.0)
    async with house.open():
        lease = await ready(house, LLAMA)
        house.engine.down(LLAMA, exit_code=2)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        house.controller.ask_stop(LLAMA)
        await asyncio.sleep(90.0)

        assert {lease.id: "withdrawn"} == house.ends()
        assert (S.STOPPED, 0) == (house.state(LLAMA), reserved(house))


# ── why ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_load_that_the_kernel_ended_is_an_oom_kill(clock):
    house = a_house(clock, engine={"oom_loads": 1})
    async with house.open():
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends())

        assert ["oom_killed"] == [acted.error_type for acted in house.acted() if not acted.ok]


@in_virtual_time
async def test_why_a_start_failed_is_told_while_it_waits_and_in_quarantine(clock):
    house = a_house(clock, engine={"fail_loads": 3})
    async with house.open():
        for _ in range(3):
            await house.until(lambda: house.state(LLAMA) is S.STOPPED)
            lease = house.lease(LLAMA)
            await house.until(lambda lease=lease: lease.id in house.ends())
            await house.until(lambda: house.state(LLAMA) in (S.STOPPED, S.QUARANTINED))
            assert house.view(LLAMA).because.endswith("could not load its model")
        await house.until(lambda: house.state(LLAMA) is S.QUARANTINED)

        assert house.view(LLAMA).because.endswith("could not load its model")


# ── an engine that cannot say whether what runs answers ───────────────────────────────────────────────────────────────


@in_virtual_time
async def test_while_the_engine_cannot_be_asked_its_model_servers_are(clock):
    house = a_house(clock)
    async with house.open():
        await ready(house, LLAMA)
        house.engine.unreachable = "the socket refuses"
        await asyncio.sleep(11.0)
        assert (S.READY, True) == (house.state(LLAMA), house.view(LLAMA).answers)

        house.engine.servers[LLAMA].silent = True
        await asyncio.sleep(11.0)
        view = house.view(LLAMA)
        assert (S.READY, False, "no answer from http://127.0.0.1:21000") == (view.state, view.answers, view.because)

        house.engine.servers[LLAMA].silent = False
        await asyncio.sleep(11.0)
        assert house.view(LLAMA).answers
