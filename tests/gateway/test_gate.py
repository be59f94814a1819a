from __future__ import annotations

import asyncio
import random

import pytest

from dispatcher.gateway.gate import Gate
from dispatcher.gateway.queue import NoSlot
from dispatcher.vocabulary.gateway_settings import QueueSettings
from tests.gateway.waiting import LONG_SECONDS, settings_of, settle
from tests.virtual_time import in_virtual_time


class Batch:
    """Requests through one gate, in the order they went."""

    def __init__(self, clock, **rules) -> None:
        settings = settings_of(queue=QueueSettings(**rules))
        self.clock = clock
        self.gate = Gate(settings=lambda: settings, clock=clock)
        self.went: list[str] = []

    def ask(self, model, *, seconds=1.0, ready=False, within=LONG_SECONDS) -> asyncio.Task[None]:
        async def one() -> None:
            until = self.clock.now_seconds() + within
            async with self.gate.pass_for(model, ready=ready, until_seconds=until):
                self.went.append(model)
                await asyncio.sleep(seconds)

        return asyncio.create_task(one())


@in_virtual_time
async def test_requests_go_grouped_by_model(clock):
    batch = Batch(clock)
    asked = []
    for model in "ABCABCABC":
        asked.append(batch.ask(model, seconds=5))
        await settle()
    await asyncio.gather(*asked)

    assert list("AAABBBCCC") == batch.went


@in_virtual_time
async def test_all_of_a_group_go_together(clock):
    batch = Batch(clock)
    asked = [batch.ask("A")] + [batch.ask("B") for _ in range(3)]
    await settle()
    assert (1, 0) == (batch.gate.running("A"), batch.gate.running("B"))

    await asked[0]
    await settle()
    assert (0, 3) == (batch.gate.running("A"), batch.gate.running("B"))
    await asyncio.gather(*asked)
    assert (0, 0) == (batch.gate.running("B"), batch.gate.waiting)


@in_virtual_time
async def test_a_model_that_is_loaded_already_waits_for_nobody(clock):
    batch = Batch(clock)
    asked = [batch.ask("A"), batch.ask("C"), batch.ask("B", ready=True)]
    await settle()

    assert ["A", "B"] == batch.went
    await asyncio.gather(*asked)
    assert ["A", "B", "C"] == batch.went


@in_virtual_time
async def test_once_a_model_is_loaded_those_who_waited_for_it_go_too(clock):
    batch = Batch(clock)
    asked = [batch.ask("A", seconds=50), batch.ask("B")]
    await settle()
    asked.append(batch.ask("B", ready=True))
    await settle()

    assert ["A", "B", "B"] == batch.went
    await asyncio.gather(*asked)


@pytest.mark.parametrize("ready", [False, True])
@in_virtual_time
async def test_one_that_has_waited_beyond_the_bound_goes_before_the_group(clock, ready):
    batch = Batch(clock, batch_group_seconds=10.0)
    asked = [batch.ask("A", seconds=8), batch.ask("B")]
    await settle()
    for _ in range(8):  # always somebody of the group
        await asyncio.sleep(4)
        asked.append(batch.ask("A", seconds=8, ready=ready))
    await asyncio.gather(*asked)

    assert list("AAAB") == batch.went[:4]  # those who came within 10 s, and their end
    assert 9 == batch.went.count("A")


@in_virtual_time
async def test_with_no_patience_at_all_it_is_first_come_first_served(clock):
    batch = Batch(clock, batch_group_seconds=0.0)
    asked = []
    for model in "ABCAB":
        asked.append(batch.ask(model, seconds=5))
        await settle()
    await asyncio.gather(*asked)

    assert list("ABBCA") == batch.went


@in_virtual_time
async def test_nobody_waits_past_his_deadline(clock):
    batch, began = Batch(clock), clock.now_seconds()
    first = batch.ask("A", seconds=100)
    await settle()

    with pytest.raises(NoSlot, match="batch requests of A run") as refused:
        await batch.ask("B", within=7)

    assert 7.0 == pytest.approx(clock.now_seconds() - began)
    assert 1 <= refused.value.retry_after_seconds <= 120
    assert 0 == batch.gate.waiting
    await first


@in_virtual_time
async def test_who_gives_up_no_longer_holds_up_the_group(clock):
    batch, began = Batch(clock, batch_group_seconds=2.0), clock.now_seconds()
    asked = [batch.ask("A", seconds=100), batch.ask("B", within=10)]
    await asyncio.sleep(5)
    held_up = batch.ask("A")
    await asyncio.sleep(1)
    assert 2 == batch.gate.waiting

    await held_up
    assert 11.0 == pytest.approx(clock.now_seconds() - began)
    await asyncio.gather(*asked, return_exceptions=True)


@in_virtual_time
async def test_the_gate_is_bounded(clock):
    batch = Batch(clock, batch_entries=1)
    asked = [batch.ask("A"), batch.ask("B")]
    await settle()

    with pytest.raises(NoSlot, match="batch_entries"):
        await batch.ask("C")
    await asyncio.gather(*asked)


@in_virtual_time
async def test_when_a_whole_group_is_cancelled_as_its_turn_comes_the_next_one_goes(clock):
    batch = Batch(clock)
    gate = batch.gate
    await gate.enter("A", ready=False, until_seconds=clock.now_seconds() + 100)
    asked = [batch.ask("B"), batch.ask("C")]
    await settle()

    asked[0].cancel()
    gate.leave("A")
    await settle()
    assert ["C"] == batch.went
    await asyncio.gather(*asked, return_exceptions=True)


@in_virtual_time
async def test_let_go_and_cancelled_in_one_step_is_gone(clock):
    batch = Batch(clock)
    gate = batch.gate
    await gate.enter("A", ready=False, until_seconds=clock.now_seconds() + 100)
    asked = [batch.ask("B"), batch.ask("C")]
    await settle()

    gate.leave("A")
    asked[0].cancel()
    await settle()
    assert ["C"] == batch.went
    await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("seed", range(5))
@in_virtual_time
async def test_a_thousand_cancels_at_random_moments_leave_the_gate_open(clock, seed):
    chance = random.Random(seed)
    batch = Batch(clock, batch_group_seconds=3.0)

    async def ask_here() -> None:
        until = clock.now_seconds() + chance.choice([0.5, 2.0, LONG_SECONDS])
        async with batch.gate.pass_for(chance.choice("ABC"), ready=chance.random() < 0.2, until_seconds=until):
            await asyncio.sleep(chance.randrange(4) / 10)

    async def come_and_go(at: int) -> None:
        await asyncio.sleep(at / 10)
        task = asyncio.create_task(ask_here())
        await asyncio.sleep(chance.randrange(12) / 10)
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        task.cancel()
        (end,) = await asyncio.gather(task, return_exceptions=True)
        assert end is None or isinstance(end, NoSlot | asyncio.CancelledError), end

    await asyncio.gather(*(come_and_go(chance.randrange(1000)) for _ in range(1500)))

    assert 0 == batch.gate.waiting
    assert [0, 0, 0] == [batch.gate.running(model) for model in "ABC"]
    assert {asyncio.current_task()} == asyncio.all_tasks()
    await batch.ask("A")
