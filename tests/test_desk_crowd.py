"""Hundreds that wait at once: what they cost is counted, how many they may be is bounded; in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from dispatcher.desk import MAX_WAITING, WAKE_SECONDS, WAKES_PER_SECOND
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB
from dispatcher.wire.decision import no_model
from tests.builders import LLAMA, QWEN
from tests.virtual_house import House, a_house, told, up
from tests.virtual_time import in_virtual_time

SMALL = 8 * GIB  # 7 of room: llama and qwen do not fit together
QWEN_NAMED = Asked(model="qwen2.5:7b", text="think hard", wait_seconds=30.0)
LLAMA_NAMED = Asked(model="llama3.2:3b", text="hi", lease_seconds=600.0)


def counted(house: House) -> list[float]:
    """When the desk decided: it reads the snapshot once for each decision."""
    decided: list[float] = []

    def snapshot():
        decided.append(house.clock.now_seconds())
        return house.measured()

    house.desk._snapshot = snapshot
    return decided


async def leased(house: House):
    await up(house, LLAMA)
    return await house.desk.select(LLAMA_NAMED)


async def waiting(house: House, count: int, asked: Asked = QWEN_NAMED) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(house.desk.select(asked)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


@in_virtual_time
async def test_who_gives_up_waiting_costs_those_who_still_wait_nothing(clock):
    """One more each 50 ms, and each gives up 30 s after it came: 7 looks of its own each, and some when the turn passes
    on; not one for each of the others that leaves."""
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await leased(house)
        decided = counted(house)
        tasks = []
        for _ in range(200):
            tasks += await waiting(house, 1)
            await asyncio.sleep(0.05)
        answers = await asyncio.gather(*tasks)

        assert not any(one.lease for one in answers)
        assert len(decided) <= 200 * 16


@in_virtual_time
async def test_however_often_something_changes_who_is_not_next_decides_at_most_ten_times_a_second(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        small = await leased(house)
        tasks = await waiting(house, 50)
        await asyncio.sleep(1.0)
        decided, began = counted(house), clock.now_seconds()
        for _ in range(400):
            house.controller._notify()
            await asyncio.sleep(0.005)
        seconds = clock.now_seconds() - began

        its_turn = 400
        assert its_turn <= len(decided) <= its_turn + 50 * (seconds / WAKE_SECONDS + 2)
        house.give_back(small.lease)
        assert {(QWEN, PlaceState.READY, True)} == {told(one) for one in await asyncio.gather(*tasks)}


@in_virtual_time
async def test_the_more_wait_the_longer_each_rests_so_that_all_of_them_have_a_bound(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await leased(house)
        tasks = await waiting(house, 500)
        await asyncio.sleep(1.0)
        decided, began = counted(house), clock.now_seconds()
        for _ in range(100):
            house.controller._notify()
            await asyncio.sleep(0.02)
        seconds = clock.now_seconds() - began

        assert len(decided) <= 100 + seconds * WAKES_PER_SECOND + 2 * 500
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@in_virtual_time
async def test_who_is_next_decides_at_the_moment_of_the_change(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        small = await leased(house)
        (first, *_) = await waiting(house, 3)
        await asyncio.sleep(1.0)
        decided = counted(house)
        house.controller._notify()
        await asyncio.sleep(0)
        ended_at = clock.now_seconds()
        house.give_back(small.lease)
        await first

        assert ended_at in decided


@in_virtual_time
async def test_one_more_than_may_wait_is_refused_at_once_with_a_reason_and_a_time(clock):
    house = a_house(clock, total_bytes=SMALL)
    async with house.open():
        await leased(house)
        tasks = await waiting(house, MAX_WAITING)
        began = clock.now_seconds()
        refused = await house.desk.select(QWEN_NAMED)
        shape = no_model(refused.decision, "r-1")

        assert began == clock.now_seconds()
        assert (503, True) == (shape.status, shape.should_retry)
        assert 1 <= shape.retry_after_seconds <= 120
        assert (
            f"1,024 requests wait already, as many as may; ask again in {shape.retry_after_seconds} s" in shape.detail
        )
        assert "too_many_waiting" in [reason.code for reason in refused.decision.reasons]
        assert "none" == house.decided()[-1].outcome

        tasks.pop().cancel()
        await asyncio.sleep(0.1)
        tasks += await waiting(house, 1)
        assert not tasks[-1].done(), "who leaves makes room for one more"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert () == house.controller.view().claims


@in_virtual_time
async def test_who_waits_out_a_backoff_decides_at_most_ten_times_a_second_too(clock):
    house = a_house(clock, engine={"fail_loads": 1}, backoff_min_seconds=20.0)
    async with house.open():
        lease = house.lease(LLAMA)
        await house.until(lambda: lease.id in house.ends())
        (task,) = await waiting(house, 1, replace(LLAMA_NAMED, wait_seconds=60.0))
        decided, began = counted(house), clock.now_seconds()
        for _ in range(200):
            house.controller._notify()
            await asyncio.sleep(0.01)

        assert len(decided) <= (clock.now_seconds() - began) / WAKE_SECONDS + 2
        assert (LLAMA, PlaceState.READY, True) == told(await task)
