"""A deadline that is moved on with every piece, and one timer behind it."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.gateway.patience import Patience
from tests.virtual_time import in_virtual_time


async def _passed(seconds: float) -> float:
    """When it gave up on a stream whose pieces come that far apart, and may each take 10 s."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with Patience(began + 10.0) as patience:
            for _ in range(5):
                await asyncio.sleep(seconds)
                patience.reschedule(loop.time() + 10.0)
            await asyncio.sleep(1000.0)
    except TimeoutError:
        return loop.time() - began
    raise AssertionError("it never gave up")


@in_virtual_time
async def test_a_deadline_that_is_moved_on_counts_from_the_last_move(clock):
    assert pytest.approx(5 * 4.0 + 10.0, abs=0.01) == await _passed(4.0)


@in_virtual_time
async def test_a_deadline_that_was_not_moved_in_time_has_passed(clock):
    assert pytest.approx(10.0, abs=0.01) == await _passed(11.0)


@in_virtual_time
async def test_a_deadline_may_come_closer(clock):
    loop = asyncio.get_running_loop()
    began = loop.time()
    patience = Patience(began + 600.0)

    async def waits() -> None:
        async with patience:
            patience.reschedule(began + 1.0)
            await asyncio.sleep(1000.0)

    with pytest.raises(TimeoutError):
        await waits()
    assert patience.expired()
    assert pytest.approx(1.0, abs=0.01) == loop.time() - began


@in_virtual_time
async def test_one_that_was_left_in_time_rings_nobody(clock):
    async with Patience(asyncio.get_running_loop().time() + 1.0) as patience:
        pass
    await asyncio.sleep(10.0)

    assert not patience.expired()


@in_virtual_time
async def test_a_cancellation_from_outside_stays_one(clock):
    async def waits() -> None:
        async with Patience(asyncio.get_running_loop().time() + 100.0):
            await asyncio.sleep(1000.0)

    task = asyncio.create_task(waits())
    await asyncio.sleep(1.0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
