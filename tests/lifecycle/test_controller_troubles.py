"""Starts that fail, places that crash or vanish, an engine gone silent, a daemon that is killed; in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.clock import ManualClock
from dispatcher.control.ledger import reserved_bytes
from dispatcher.vocabulary.event import Turned
from dispatcher.vocabulary.fleet import Lease, PlaceState
from dispatcher.vocabulary.settings import GIB
from dispatcher.vocabulary.signal import Freshness
from tests.builders import LLAMA, PHI, QWEN, a_lease, a_snapshot
from tests.fake_engine import footprint
from tests.virtual_house import a_house, ready
from tests.virtual_time import in_virtual_time

S = PlaceState
SMALL = 8 * GIB  # 7 of room: llama and qwen do not fit together


# ── failing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["fail_starts", "fail_loads"])
@pytest.mark.parametrize("list_seconds", [0.01, 0.0])
@in_virtual_time
async def test_a_failed_start_ends_its_leases_and_stops_what_half_started(clock, how, list_seconds):
    house = a_house(clock, engine={how: 1, "stop_seconds": 5.0})  # time enough to be told twice, by mistake
    house.engine.list_seconds = list_seconds
    async with house.open():
        leases = [house.lease(LLAMA), house.lease(LLAMA)]
        await house.until(lambda: len(house.ends()) == 2)
        assert {lease.id: "start_failed" for lease in leases} == house.ends()
        failed_at = clock.now_seconds()
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)

        assert 0 == reserved_bytes(house.controller.tenancy.ledger)
        assert 0 == house.engine.held_bytes()
        assert pytest.approx(failed_at + 1.0, abs=0.1) == house.view(LLAMA).retry_at_seconds
        (failure,) = [acted for acted in house.acted() if not acted.ok]
        assert "start_refused" == failure.error_type


@in_virtual_time
async def test_a_load_that_hangs_is_cut_at_its_deadline(clock):
    house = a_house(clock, engine={"hang_load": True})
    async with house.open():
        began = clock.now_seconds()
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends())

        assert pytest.approx(300, abs=2) == clock.now_seconds() - began
        assert "load_timeout" == house.acted()[0].error_type
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        assert 0 == house.engine.held_bytes()


@in_virtual_time
async def test_three_failures_are_a_quarantine_and_time_heals_it(clock):
    house = a_house(clock, engine={"fail_loads": 3})
    async with house.open():
        for _ in range(3):
            await house.until(lambda: house.state(LLAMA) is S.STOPPED)
            lease = house.lease(LLAMA)
            await house.until(lambda lease=lease: lease.id in house.ends())
        await house.until(lambda: house.state(LLAMA) is S.QUARANTINED)
        began = clock.now_seconds()

        await house.until(lambda: house.state(LLAMA) is S.STOPPED, within_seconds=700)
        assert pytest.approx(600, abs=12) == clock.now_seconds() - began
        assert 3 == len(house.engine.did("load")), "nothing was tried meanwhile"
        house.lease(LLAMA)
        await house.until(lambda: house.state(LLAMA) is S.READY)


@in_virtual_time
async def test_a_start_by_hand_ends_a_quarantine_for_good(clock):
    house = a_house(clock, engine={"fail_loads": 3}, idle_seconds=60.0)
    async with house.open():
        for _ in range(3):
            await house.until(lambda: house.state(LLAMA) is S.STOPPED)
            house.lease(LLAMA)
            await house.until(lambda: house.state(LLAMA) in (S.STOPPED, S.QUARANTINED) and not house.live_leases())
        await house.until(lambda: house.state(LLAMA) is S.QUARANTINED)
        house.controller.hold(LLAMA, 4096, (), "asked")
        await house.until(lambda: house.state(LLAMA) is S.READY)
        await asyncio.sleep(120.0)

        assert S.STOPPED is house.state(LLAMA), "stopped for being idle, and not back in quarantine"


@in_virtual_time
async def test_a_crash_of_a_leased_place_is_started_again_after_its_backoff(clock):
    house = a_house(clock)
    async with house.open():
        lease = await ready(house, LLAMA)
        house.engine.down(LLAMA, exit_code=137, oom_killed=True)
        house.engine.tell()
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        assert footprint(LLAMA) == reserved_bytes(house.controller.tenancy.ledger)
        await house.until(lambda: house.state(LLAMA) is S.READY)

        assert {} == house.ends()
        assert 1 == house.view(LLAMA).leases
        assert ["oom_killed"] == [acted.error_type for acted in house.acted() if not acted.ok]
        assert lease.id == next(iter(house.controller.tenancy.promises.on(LLAMA)))


@in_virtual_time
async def test_a_crash_nobody_leased_is_not_started_again(clock):
    house = a_house(clock)
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        house.engine.down(LLAMA, exit_code=2)
        await asyncio.sleep(60.0)

        assert S.STOPPED is house.state(LLAMA)
        assert 1 == len(house.engine.did("start"))


@in_virtual_time
async def test_crashing_again_and_again_is_quarantined_and_its_leases_end(clock):
    house = a_house(clock)
    async with house.open():
        lease = await ready(house, LLAMA)
        for _ in range(3):
            house.engine.down(LLAMA, exit_code=2)
            await house.until(lambda: house.state(LLAMA) is not S.READY)
            await house.until(lambda: house.state(LLAMA) in (S.READY, S.QUARANTINED))

        assert S.QUARANTINED is house.state(LLAMA)
        assert {lease.id: "start_failed"} == house.ends()
        assert 0 == reserved_bytes(house.controller.tenancy.ledger)


# ── the engine's silence, and its news ────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_an_unreachable_engine_freezes_everything_and_forgets_nothing(clock):
    house = a_house(clock, idle_seconds=60.0)
    async with house.open():
        house.give_back(await ready(house, LLAMA, dwelt=False))
        await asyncio.sleep(35.0)
        done = len(house.engine.calls)
        house.engine.unreachable = "the socket refuses"
        await asyncio.sleep(300.0)

        assert (S.READY, "the socket refuses") == (house.state(LLAMA), house.controller.view().failing)
        assert done == len(house.engine.calls)
        assert footprint(LLAMA) == reserved_bytes(house.controller.tenancy.ledger)
        assert "the engine cannot be asked: the socket refuses" == house.controller.tenancy.take(
            QWEN, 4096, (), "asked"
        )
        assert isinstance(house.lease(LLAMA), Lease), "what runs is leased"
        house.give_back(house.lease(LLAMA))

        house.engine.unreachable = None
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        turns = [
            (event.before, event.after)
            for event in house.events
            if isinstance(event, Turned) and event.what == "provider"
        ]
        assert [("failing", "answers"), ("answers", "failing"), ("failing", "answers")] == turns


@in_virtual_time
async def test_an_engine_that_answers_too_late_is_silent(clock):
    house = a_house(clock)
    async with house.open():
        house.engine.list_seconds = 60.0
        await asyncio.sleep(20.0)

        assert "no answer within the deadline" == house.controller.view().failing


@in_virtual_time
async def test_what_runs_at_start_is_adopted_and_started_by_nobody(clock):
    house = a_house(clock)
    house.engine.up(LLAMA, 8192)
    house.engine.up(PHI, None)
    async with house.open():
        await house.until(lambda: house.state(PHI) is S.READY)

        assert (S.READY, 8192) == (house.state(LLAMA), house.view(LLAMA).num_ctx)
        assert [] == house.engine.did("start", LLAMA)
        assert [4096] == [call.num_ctx for call in house.engine.did("load", PHI)]
        assert footprint(LLAMA, 8192) + footprint(PHI) == reserved_bytes(house.controller.tenancy.ledger)


@in_virtual_time
async def test_a_place_that_vanishes_ends_its_leases_and_frees_its_memory(clock):
    house = a_house(clock)
    async with house.open():
        lease = await ready(house, LLAMA)
        del house.engine.servers[LLAMA]
        await asyncio.sleep(6.0)

        assert {lease.id: "withdrawn"} == house.ends()
        assert 0 == reserved_bytes(house.controller.tenancy.ledger)
        (last,) = [event for event in house.events if isinstance(event, Turned) and event.place == LLAMA][-1:]
        assert ("place", str(LLAMA), "ready", "gone") == (last.what, last.subject, last.before, last.after)
        assert "the engine does not list it any more" == last.because


@in_virtual_time
async def test_a_place_that_vanishes_during_its_start_leaves_nothing_behind(clock):
    house = a_house(clock, engine={"load_seconds": 30.0})
    async with house.open():
        lease = house.lease(LLAMA)
        await asyncio.sleep(10.0)
        del house.engine.servers[LLAMA]
        await asyncio.sleep(60.0)

        assert {lease.id: "withdrawn"} == house.ends()
        assert 0 == reserved_bytes(house.controller.tenancy.ledger)


@in_virtual_time
async def test_the_engines_news_wake_the_loop_early(clock):
    house = a_house(clock, reconcile_interval_seconds=60.0)
    async with house.open():
        await asyncio.sleep(5.0)
        house.engine.up(LLAMA, 4096)
        house.engine.tell()
        await asyncio.sleep(1.0)

        assert S.READY is house.state(LLAMA)


@in_virtual_time
async def test_foreign_models_count_as_reserved(clock):
    house = a_house(clock, total_bytes=SMALL)
    house.engine.foreign = 3 * GIB
    async with house.open():
        assert 3 * GIB == house.controller.view().reserved_bytes
        assert "the ledger refused: needs 4.9 GiB, 4.0 GiB not promised yet" == house.controller.tenancy.take(
            QWEN, 4096, (), "asked"
        )


# ── a restart of the daemon ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("crash_after_seconds", [0.0, 0.5, 2.5, 4.0, 5.1, 7.0, 9.0, 30.0])
@in_virtual_time
async def test_killed_at_any_moment_of_a_swap_the_promise_is_kept_after_the_restart(clock, crash_after_seconds):
    """An eviction (stop 3 s), a start (0.3 s) and a load (4 s): killed after so many seconds of it, then restarted."""
    house = a_house(clock, total_bytes=SMALL, engine={"stop_seconds": 3.0})
    async with house.open():
        house.give_back(await ready(house, LLAMA))
        lease = house.lease(QWEN, evicts=[LLAMA], seconds=120.0)
        await asyncio.sleep(crash_after_seconds)
        kept = house.controller.tenancy.promises.get(lease.id)

    for server in house.engine.servers.values():
        server.at_work = ""  # the engine finishes or drops what it was told: here it dropped it
    reborn = house.another_controller()
    reborn.restore([kept])
    house.controller = reborn
    async with house.open(reborn):
        status = await reborn.ready(lease.id, clock.now_seconds() + 60)

        assert (S.READY, None) == (status.state, status.ended)
        assert None is not status.lease.expires_at_seconds
        assert S.STOPPED is house.state(LLAMA)
        assert house.engine.peak_bytes <= 7 * GIB
        await asyncio.sleep(130.0)
        assert {lease.id: "expired"} == {one: cause for one, cause in house.ends().items() if one == lease.id}


@in_virtual_time
async def test_leases_survive_a_restart_that_is_blind_at_first(clock):
    house = a_house(clock, total_bytes=SMALL)
    blind = replace(a_snapshot(), readings={}, freshness=Freshness.BLIND, number=0)
    house.snapshot = lambda: blind
    house.controller.restore([a_lease(QWEN, granted_at_seconds=clock.now_seconds())])
    async with house.open():
        await asyncio.sleep(20.0)
        assert {} == house.ends()
        assert [] == house.engine.did("start")

        house.snapshot = None
        await house.until(lambda: house.state(QWEN) is S.READY)
        assert footprint(QWEN) == reserved_bytes(house.controller.tenancy.ledger)


def test_virtual_time_does_not_wait():
    """The loop under these tests: a day passes in no time, and a wait for nothing is an error, not a hang."""

    @in_virtual_time
    async def a_day(clock: ManualClock) -> None:
        began = clock.now_seconds()
        await asyncio.sleep(86_400)
        assert 86_400 == pytest.approx(clock.now_seconds() - began)

    @in_virtual_time
    async def for_nothing(clock: ManualClock) -> None:
        await asyncio.Event().wait()

    a_day()
    with pytest.raises(AssertionError, match="every task waits for something"):
        for_nothing()
