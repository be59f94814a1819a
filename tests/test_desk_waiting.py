"""A request that waits for leases, or leaves while it waits: bounded, and without a trace; in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.vocabulary.event import Leased
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB
from dispatcher.wire.decision import no_model
from tests.builders import LLAMA, QWEN
from tests.virtual_house import a_house, ready, told, up
from tests.virtual_time import in_virtual_time

S = PlaceState
SMALL = 8 * GIB  # 7 of room: llama and qwen do not fit together
QWEN_NAMED = Asked(model="qwen2.5:7b", text="think hard")
LLAMA_NAMED = Asked(model="llama3.2:3b", text="hi")


# ── waiting for leases ────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_named_model_waits_for_the_lease_in_its_way(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await up(house, LLAMA)
        small = await house.desk.select(replace(LLAMA_NAMED, lease_seconds=300.0))
        waiting = asyncio.create_task(house.desk.select(QWEN_NAMED))
        await asyncio.sleep(30.0)
        assert not waiting.done()
        (claim,) = house.controller.view().claims
        assert (QWEN, (LLAMA,)) == (claim.place, claim.victims)

        house.give_back(small.lease, "outcome")
        began = clock.now_seconds()
        assert (QWEN, S.READY, True) == told(await waiting)
        assert clock.now_seconds() - began < 15.0
        assert () == house.controller.view().claims


@in_virtual_time
async def test_a_lease_that_ended_with_a_busy_cpu_is_waited_out(clock):
    """The newest CPU reading still shows the work that ended with the lease: no reason to refuse who waited for it."""
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await up(house, LLAMA)
        small = asyncio.create_task(house.use(LLAMA_NAMED, work_seconds=28.0))
        await asyncio.sleep(20.0)
        assert house.view(LLAMA).cpu_cores.value > 1.0
        selected = await house.desk.select(QWEN_NAMED)
        ended = next(event.at_seconds for event in house.events if isinstance(event, Leased) and event.what == "ended")

        assert (QWEN, S.READY, True) == told(selected)
        assert None is not (await small).lease
        assert clock.now_seconds() - ended < 20.0, "two looks, a stop, a start and a load; not the rest of the lease"


@in_virtual_time
async def test_while_it_waits_the_place_in_its_way_takes_no_new_leases(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await up(house, LLAMA)
        await house.desk.select(replace(LLAMA_NAMED, lease_seconds=60.0))
        waiting = asyncio.create_task(house.desk.select(QWEN_NAMED))
        await asyncio.sleep(1.0)
        refused = await house.desk.select(replace(LLAMA_NAMED, wait_seconds=0.0))

        assert None is refused.decision.chosen
        assert "takes no new leases until" in refused.decision.sentence
        assert (QWEN, S.READY, True) == told(await waiting)


@in_virtual_time
async def test_the_wait_ends_with_the_callers_patience(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await up(house, LLAMA)
        await house.desk.select(replace(LLAMA_NAMED, lease_seconds=600.0))
        began = clock.now_seconds()
        selected = await house.desk.select(replace(QWEN_NAMED, wait_seconds=40.0))

        assert None is selected.decision.chosen
        assert pytest.approx(40.0, abs=0.5) == clock.now_seconds() - began
        assert () == house.controller.view().claims
        assert "llama3.2:3b (2.6 GiB) is leased until" in selected.decision.sentence


@in_virtual_time
async def test_the_wait_ends_with_the_longest_lease_that_was_alive_when_it_began(clock):
    """A renewed lease does not prolong it: the small ones are not starved for longer than that either."""
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await up(house, LLAMA)
        small = await house.desk.select(replace(LLAMA_NAMED, lease_seconds=50.0))
        began = clock.now_seconds()
        waiting = asyncio.create_task(house.desk.select(replace(QWEN_NAMED, wait_seconds=280.0)))
        await asyncio.sleep(30.0)
        house.controller.tenancy.renew(small.lease.id)
        selected = await waiting

        assert None is selected.decision.chosen
        assert clock.now_seconds() - began < 53.0


@in_virtual_time
async def test_who_does_not_want_to_wait_is_refused_at_once(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await up(house, LLAMA)
        await house.desk.select(LLAMA_NAMED)
        for asked in (replace(QWEN_NAMED, wait_seconds=0.0), replace(QWEN_NAMED, start=False)):
            began = clock.now_seconds()
            selected = await house.desk.select(asked)
            assert None is selected.decision.chosen
            assert began == clock.now_seconds()


@in_virtual_time
async def test_a_reload_waits_for_the_lease_on_its_own_place(clock):
    house = a_house(clock, places=[LLAMA])
    async with house.open():
        await up(house, LLAMA)
        small = await house.desk.select(replace(LLAMA_NAMED, lease_seconds=300.0))
        waiting = asyncio.create_task(house.desk.select(replace(LLAMA_NAMED, context_tokens=6000)))
        await asyncio.sleep(10.0)
        assert 4096 == house.view(LLAMA).num_ctx
        house.give_back(small.lease)

        assert (LLAMA, S.READY, True) == told(await waiting)
        assert 8192 == house.view(LLAMA).num_ctx


@in_virtual_time
async def test_two_that_wait_for_the_same_memory_are_served_one_after_the_other(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await up(house, LLAMA)
        small = await house.desk.select(replace(LLAMA_NAMED, lease_seconds=300.0))
        first = asyncio.create_task(house.desk.select(QWEN_NAMED))
        await asyncio.sleep(1.0)
        second = asyncio.create_task(house.desk.select(QWEN_NAMED))
        await asyncio.sleep(1.0)
        house.give_back(small.lease)

        assert [(QWEN, S.READY, True)] * 2 == [told(await first), told(await second)]
        assert 1 == len(house.engine.did("load", QWEN))


# ── leaving ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_client_that_leaves_while_its_model_loads_leaves_no_lease_and_the_load_goes_on(clock):
    house = a_house(clock, engine={"load_seconds": 30.0})
    async with house.open():
        leaving = asyncio.create_task(house.desk.select(LLAMA_NAMED))
        await asyncio.sleep(10.0)
        assert 1 == house.live_leases()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving

        assert 0 == house.live_leases()
        assert ["returned"] == list(house.ends().values())
        await house.until(lambda: house.state(LLAMA) is S.READY)


@in_virtual_time
async def test_a_client_that_leaves_while_its_lease_is_written_leaves_none(clock):
    house = a_house(clock)
    async with house.open():
        leaving = asyncio.create_task(house.desk.select(LLAMA_NAMED))
        await asyncio.sleep(0.001)
        assert 1 == house.live_leases()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

        assert 0 == house.live_leases()


@in_virtual_time
async def test_a_client_that_leaves_while_it_waits_for_leases_leaves_no_claim(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await up(house, LLAMA)
        await house.desk.select(LLAMA_NAMED)
        leaving = asyncio.create_task(house.desk.select(QWEN_NAMED))
        await asyncio.sleep(1.0)
        assert 1 == len(house.controller.view().claims)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

        assert () == house.controller.view().claims
        assert (LLAMA, S.READY, True) == told(await house.desk.select(LLAMA_NAMED))


@in_virtual_time
async def test_a_fault_of_ours_leaves_no_lease_either(clock):
    house = a_house(clock)

    async def broken(lease):
        raise RuntimeError("a bug")

    house.desk._record_lease = broken
    async with house.open():
        with pytest.raises(RuntimeError, match="a bug"):
            await house.desk.select(LLAMA_NAMED)

        assert 0 == house.live_leases()


@in_virtual_time
async def test_a_request_that_waits_for_a_lease_is_answered_at_once_when_the_daemon_leaves(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await ready(house, LLAMA)
        asking = asyncio.create_task(house.desk.select(Asked(text="x", model="qwen2.5:7b", wait_seconds=200.0)))
        await asyncio.sleep(5.0)
        asked_at = clock.now_seconds()
        assert not asking.done()

        house.controller.leave()
        selected = await asking

        assert selected.decision.chosen is None
        assert clock.now_seconds() - asked_at < 1.0


# ── waiting for a backoff ─────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_named_model_waits_out_the_backoff_of_its_place_and_says_so(clock):
    house = a_house(clock, engine={"fail_loads": 1, "stop_seconds": 5.0}, backoff_min_seconds=30.0)
    async with house.open():
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends())
        began = clock.now_seconds()
        assert S.STOPPING is house.state(LLAMA), "on its way down is no reason to be refused, either"
        selected = await house.desk.select(replace(LLAMA_NAMED, wait_seconds=60.0))

        assert (LLAMA, S.READY, True) == told(selected)
        assert 30.0 <= clock.now_seconds() - began < 40.0
        (reason,) = [reason for reason in selected.decision.reasons if reason.code == "start_backoff"]
        assert "waited 30.0 s for the next try after a failed start" == reason.detail


@in_virtual_time
async def test_a_backoff_beyond_the_callers_patience_is_told_at_once_with_its_end(clock):
    house = a_house(clock, engine={"fail_loads": 1}, backoff_min_seconds=90.0)
    async with house.open():
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends())
        failed_at = clock.now_seconds()
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        asked_at = clock.now_seconds()
        selected = await house.desk.select(replace(LLAMA_NAMED, wait_seconds=60.0))

        assert (None, asked_at) == (selected.decision.chosen, clock.now_seconds())
        left = failed_at + 90.0 - asked_at
        assert left - 0.01 <= selected.decision.retry_after_seconds < left + 1.1
        assert "its last start failed" in selected.decision.sentence


@in_virtual_time
async def test_who_waits_for_a_backoff_is_answered_when_the_daemon_leaves(clock):
    house = a_house(clock, engine={"fail_loads": 1}, backoff_min_seconds=100.0)
    async with house.open():
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends() and house.state(LLAMA) is S.STOPPED)
        waiting = asyncio.create_task(house.desk.select(replace(LLAMA_NAMED, wait_seconds=200.0)))
        await asyncio.sleep(10.0)
        house.controller.leave()
        began = clock.now_seconds()

        assert None is (await waiting).decision.chosen
        assert began == clock.now_seconds()


# ── waiting for a dwell ───────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_named_model_waits_out_the_dwell_of_who_holds_its_memory_and_says_so(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        small = await house.desk.select(LLAMA_NAMED)
        house.give_back(small.lease, "outcome")
        ends = house.view(LLAMA).dwell_until_seconds
        assert clock.now_seconds() < ends
        selected = await house.desk.select(QWEN_NAMED)

        assert (QWEN, S.READY, True) == told(selected)
        assert ends <= clock.now_seconds(), "who started a moment ago is not stopped at once"
        (reason,) = [reason for reason in selected.decision.reasons if reason.code == "dwell"]
        assert reason.detail.endswith("s for a model that had just been started")


@in_virtual_time
async def test_a_dwell_beyond_the_callers_patience_is_no_want_of_memory(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        small = await house.desk.select(LLAMA_NAMED)
        house.give_back(small.lease, "outcome")
        left = house.view(LLAMA).dwell_until_seconds - clock.now_seconds()
        selected = await house.desk.select(replace(QWEN_NAMED, wait_seconds=1.0))
        shape = no_model(selected.decision, "r-1")

        assert ("urn:dispatcher:no_usable_model", True) == (shape.type, shape.should_retry)
        assert left - 0.01 <= shape.retry_after_seconds < left + 1.1
        assert "was started a moment ago and stays until" in selected.decision.sentence
