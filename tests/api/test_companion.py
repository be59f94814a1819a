"""Who answers a request is cancelled when its client leaves, and by nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dispatcher.api.exchange import ClientLeft, Companion, Presence


async def _silent() -> dict[str, Any]:
    return await asyncio.get_running_loop().create_future()


async def _works(presence: Presence, entered: asyncio.Event) -> None:
    async with Companion(_silent, presence):
        entered.set()
        await asyncio.get_running_loop().create_future()


async def test_a_connection_that_is_lost_ends_what_is_answered_on_it():
    presence, entered = Presence(), asyncio.Event()
    task = asyncio.create_task(_works(presence, entered))
    await entered.wait()

    presence.end()

    with pytest.raises(ClientLeft):
        await task


async def test_a_connection_that_was_lost_before_ends_it_at_its_first_wait():
    presence = Presence()
    presence.end()

    with pytest.raises(ClientLeft):
        await asyncio.create_task(_works(presence, asyncio.Event()))


async def test_a_connection_that_is_lost_afterwards_cancels_nobody():
    presence = Presence()

    async with Companion(_silent, presence) as companion:
        pass
    presence.end()
    await asyncio.sleep(0)

    assert not companion.left


async def test_a_cancellation_from_outside_is_not_taken_for_a_client_that_left():
    presence, entered = Presence(), asyncio.Event()
    task = asyncio.create_task(_works(presence, entered))
    await entered.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_sends_the_client_away_waits_until_it_is_gone_and_is_not_cancelled():
    presence = Presence()

    async with Companion(_silent, presence) as companion:
        asyncio.get_running_loop().call_soon(presence.end)
        await companion.gone()

    assert not companion.left
