"""Paused containers, dead model servers, starts nobody answered for, kernels that kill; in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.control.ledger import reserved_bytes
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.request import Asked
from tests.builders import LLAMA, a_lease
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
        assert house.view(LLAMA).answers, "two looks have failed"
        await asyncio.sleep(5.0)
        view = house.view(LLAMA)
        assert (S.READY, False, "no answer from http://127.0.0.1:21000") == (view.state, view.answers, view.because)

        house.engine.servers[LLAMA].silent = False
        await asyncio.sleep(11.0)
        assert house.view(LLAMA).answers


@in_virtual_time
async def test_a_ready_place_that_misses_two_looks_stays_in_use_and_three_in_a_row_take_it_out(clock):
    house = a_house(clock)
    async with house.open():
        await ready(house, LLAMA)
        server = house.engine.servers[LLAMA]
        server.silent = True
        await asyncio.sleep(9.0)
        assert house.view(LLAMA).answers, "one look or two"
        server.silent = False
        await asyncio.sleep(5.5)
        server.silent = True
        await asyncio.sleep(9.0)
        assert house.view(LLAMA).answers, "not in a row"

        await asyncio.sleep(6.5)
        assert (False, "no answer") == (house.view(LLAMA).answers, house.view(LLAMA).because)
        server.silent = False
        await asyncio.sleep(4.9)
        assert not house.view(LLAMA).answers, "one pass is no recovery"
        await asyncio.sleep(6.0)
        assert house.view(LLAMA).answers


@in_virtual_time
async def test_a_place_whose_container_has_ended_is_down_at_once(clock):
    house = a_house(clock)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.down(LLAMA, exit_code=2)
        house.engine.tell()
        await asyncio.sleep(0.1)

        assert S.STOPPED is house.state(LLAMA)


@in_virtual_time
async def test_a_server_that_hangs_while_its_container_runs_is_stopped_as_a_failure_and_can_be_started_again(clock):
    house = a_house(clock, backoff_min_seconds=20.0)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.servers[LLAMA].silent = True
        began = clock.now_seconds()
        await asyncio.sleep(300.0)
        assert (S.READY, False) == (house.state(LLAMA), house.view(LLAMA).answers), "as long as a load may take"

        await house.until(lambda: house.state(LLAMA) is S.STOPPED, within_seconds=60.0)
        view, stopped = house.view(LLAMA), clock.now_seconds()
        assert 310 <= stopped - began <= 330
        assert "silent for as long as a load may take: no answer" == view.because
        assert view.retry_at_seconds >= stopped + 15.0, "its backoff, as after any failure"
        assert ["place_crashed"] == [acted.error_type for acted in house.acted() if not acted.ok]
        assert "failed" == house.acted()[-1].action.cause

        house.engine.servers[LLAMA].silent = False
        selected = await house.desk.select(Asked(model="llama3.2:3b", wait_seconds=120.0))
        assert (S.READY, True) == (selected.state, house.view(LLAMA).answers)


@in_virtual_time
async def test_a_server_that_hangs_again_and_again_is_quarantined_like_any_other_that_fails(clock):
    house = a_house(clock, load_timeout_seconds=20.0)
    async with house.open():
        for _ in range(3):
            house.give_back(await ready(house, LLAMA, dwelt=False))
            house.engine.servers[LLAMA].silent = True
            await house.until(lambda: house.state(LLAMA) in (S.STOPPED, S.QUARANTINED))
            house.engine.servers[LLAMA].silent = False
            await asyncio.sleep(10.0)

        assert S.QUARANTINED is house.state(LLAMA)


@pytest.mark.parametrize("why", ["leased", "in flight", "computing", "paused"])
@in_virtual_time
async def test_a_silent_server_that_is_used_or_paused_is_left_alone(clock, why):
    house = a_house(clock)
    async with house.open():
        lease = await ready(house, LLAMA)
        server = house.engine.servers[LLAMA]
        if why != "leased":
            house.give_back(lease)
        house.in_flight[LLAMA] = int(why == "in flight")
        house.engine.work(LLAMA, 2.0 if why == "computing" else 0.0)
        server.silent = True
        await asyncio.sleep(60.0)
        server.paused = why == "paused"
        await asyncio.sleep(700.0)
        assert (S.READY, False) == (house.state(LLAMA), house.view(LLAMA).answers)

        server.silent = server.paused = False
        await asyncio.sleep(6.0)
        house.in_flight.clear()
        house.engine.work(LLAMA, 0.0)
        await asyncio.sleep(20.0)
        assert (S.READY, True) == (house.state(LLAMA), house.view(LLAMA).answers)


# ── silent when it was found ──────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_what_is_silent_when_it_is_found_is_not_loaded_anew_but_taken_as_it_says(clock):
    house = a_house(clock)
    house.engine.up(LLAMA, 16384)
    house.engine.servers[LLAMA].silent = True
    async with house.open():
        await asyncio.sleep(120.0)
        assert (S.STARTING, []) == (house.state(LLAMA), house.engine.calls)

        house.engine.servers[LLAMA].silent = False
        await asyncio.sleep(6.0)
        assert (S.READY, 16384, []) == (house.state(LLAMA), house.view(LLAMA).num_ctx, house.engine.calls)
        assert footprint(LLAMA, 16384) == reserved(house)


@in_virtual_time
async def test_what_was_silent_and_turns_out_to_be_empty_is_loaded(clock):
    house = a_house(clock)
    house.engine.up(LLAMA, None)
    house.engine.servers[LLAMA].silent = True
    async with house.open():
        await asyncio.sleep(30.0)
        house.engine.servers[LLAMA].silent = False
        await house.until(lambda: house.state(LLAMA) is S.READY)

        assert 4096 == house.view(LLAMA).num_ctx


@in_virtual_time
async def test_what_was_leased_before_a_restart_and_is_silent_is_loaded_anew_only_if_it_holds_too_little(clock):
    for loaded, expected, loads in ((16384, 16384, 0), (4096, 8192, 1)):
        house = a_house(clock)
        house.engine.up(LLAMA, loaded)
        house.engine.servers[LLAMA].silent = True
        house.controller.restore([a_lease(LLAMA, num_ctx=8192, granted_at_seconds=clock.now_seconds())])
        async with house.open():
            await asyncio.sleep(30.0)
            assert [] == house.engine.calls
            house.engine.servers[LLAMA].silent = False
            await house.until(lambda house=house: house.state(LLAMA) is S.READY)

            assert (expected, loads) == (house.view(LLAMA).num_ctx, len(house.engine.did("load")))


@in_virtual_time
async def test_what_stays_silent_for_as_long_as_a_load_may_take_is_stopped(clock):
    house = a_house(clock)
    house.engine.up(LLAMA, 4096)
    house.engine.servers[LLAMA].silent = True
    async with house.open():
        await asyncio.sleep(290.0)
        assert S.STARTING is house.state(LLAMA)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED, within_seconds=30)

        assert ["load_timeout", ""] == [acted.error_type for acted in house.acted()]
        assert "found running, and silent ever since: no answer" == house.view(LLAMA).because


# ── a port that is chosen at the start ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("load_seconds", [0.0, 40.0], ids=["loaded before the next look", "looked at while loading"])
@in_virtual_time
async def test_a_place_whose_port_is_chosen_at_its_start_is_started_and_ready_with_its_address(clock, load_seconds):
    house = a_house(clock, places=[LLAMA], engine={"port_at_start": True, "load_seconds": load_seconds})
    async with house.open():
        selected = await house.desk.select(Asked(wait_seconds=120.0))

        assert (S.READY, "http://127.0.0.1:21000") == (selected.state, selected.endpoint)
        assert (1, 1) == (len(house.engine.did("start")), len(house.engine.did("load")))


# ── deadlines, and whose it is ────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_load_may_take_three_times_what_is_predicted(clock):
    house = a_house(clock, engine={"hang_load": True})
    slow = replace(house.settings.models[1], load_seconds=200.0)
    house.settings = replace(house.settings, models=(house.settings.models[0], slow, house.settings.models[2]))
    async with house.open():
        began = clock.now_seconds()
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends(), within_seconds=700)

        assert pytest.approx(600, abs=2) == clock.now_seconds() - began
        assert ("load_timeout", "the load did not end within its deadline") == (
            house.acted()[0].error_type,
            house.acted()[0].because,
        )


@in_virtual_time
async def test_what_turns_out_not_to_be_ours_is_said_so(clock):
    house = a_house(clock)
    async with house.open():
        house.engine.servers[LLAMA].disowned = True
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends())

        assert "place_not_ours" == house.acted()[0].error_type
