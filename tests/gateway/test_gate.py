from __future__ import annotations

import asyncio
import random

import pytest

from dispatcher.gateway.gate import Gate, Group
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
            async with self.gate.pass_for(lambda: Group(model=model, ready=ready), until_seconds=until):
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
async def test_let_go_one_that_would_now_be_served_by_another_model_joins_its_group(clock):
    """Minutes may have passed: the pass is for the model it would have now."""
    batch, group = Batch(clock), {"it": "B", "other": "B", "last": "C"}

    async def one(name: str, until: float = clock.now_seconds() + 100) -> None:
        asks = []

        def whom() -> Group:
            asks.append(group[name])
            return Group(model=group[name], ready=False)

        async with batch.gate.pass_for(whom, until_seconds=until):
            batch.went.append(f"{name} with {asks[-1]}")
            await asyncio.sleep(1.0)

    first = batch.ask("A", seconds=5.0)
    await settle()
    waiting = []
    for name in group:
        waiting.append(asyncio.create_task(one(name)))
        await asyncio.sleep(0.1)
    group["it"] = "C"
    await asyncio.gather(first, *waiting)

    assert ["A", "other with B", "it with C", "last with C"] == batch.went, "before who came later"
    assert [0, 0, 0] == [batch.gate.running(model) for model in "ABC"]


@in_virtual_time
async def test_one_whose_model_changes_each_time_goes_after_a_few_changes(clock):
    batch, asked = Batch(clock), []

    def whom() -> Group:
        asked.append("BC"[len(asked) % 2])
        return Group(model=asked[-1], ready=False)

    async def one() -> None:
        async with batch.gate.pass_for(whom, until_seconds=clock.now_seconds() + LONG_SECONDS):
            batch.went.append("it")

    tasks = [batch.ask("A")]
    await settle()
    tasks.append(asyncio.create_task(one()))
    for _ in range(8):
        await settle()
        tasks += [batch.ask(model) for model in "BC"]
    await asyncio.gather(*tasks)

    assert 1 == batch.went.count("it")
    assert len(asked) <= 4
    assert 0 == batch.gate.waiting


@in_virtual_time
async def test_one_that_nothing_would_serve_now_waits_for_nobody(clock):
    batch = Batch(clock)
    asked = batch.ask("A")
    await settle()
    async with batch.gate.pass_for(lambda: None, until_seconds=clock.now_seconds() + 1):
        assert not asked.done()
    await asked


@in_virtual_time
async def test_dismissed_nobody_waits_for_a_group_any_longer(clock):
    batch = Batch(clock)
    first = batch.ask("A")
    await settle()
    waiting = batch.ask("B")
    await settle()

    batch.gate.dismiss("it leaves")

    with pytest.raises(NoSlot, match="it leaves") as refused:
        await waiting
    assert (True, ["A"]) == (refused.value.moved, batch.went)
    await first


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
        often = chance.random()

        def group() -> Group | None:  # now and then another one by the time it is let go
            if chance.random() < often:
                return Group(model=chance.choice("ABC"), ready=chance.random() < 0.2)
            return None if chance.random() < 0.1 else first

        first = Group(model=chance.choice("ABC"), ready=chance.random() < 0.2)
        async with batch.gate.pass_for(group, until_seconds=until):
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
