"""The queues under load: shares, deadlines and slots, whoever comes and goes, and in whichever step."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.clock import ManualClock
from dispatcher.gateway.queue import NoSlot, Queues
from dispatcher.vocabulary.request import PRIORITIES
from tests.builders import LLAMA
from tests.gateway.waiting import LONG_SECONDS, Asking, is_empty, queues_of, settle
from tests.virtual_time import VirtualTimeLoop, in_virtual_time


async def saturate(queues: Queues, clock: ManualClock, grants: int, arrivals: dict[str, int]) -> Counter[str]:
    """Each class always has so many waiting; counts whom the slots went to, after a warm-up."""
    counts: Counter[str] = Counter()
    served = 0

    async def one(priority: str) -> None:
        nonlocal served
        while served < grants + 30:
            slot = await queues.enter(
                LLAMA,
                priority,
                until_seconds=clock.now_seconds() + LONG_SECONDS,
                expected_seconds=0.1,
            )
            served += 1
            counts[priority] += served > 30
            await asyncio.sleep(0.1)
            slot.release()

    await asyncio.gather(*(one(priority) for priority, many in arrivals.items() for _ in range(many)))
    return counts


@settings(max_examples=20, deadline=None)
@given(
    many=st.tuples(*(st.integers(4, 12) for _ in PRIORITIES)),
    shares=st.tuples(*(st.integers(10, 60) for _ in PRIORITIES)),
    slots=st.integers(1, 3),
)
def test_saturated_each_class_gets_its_share(many, shares, slots):
    """At least 300 grants after warm-up, within 20 %."""
    clock = ManualClock()
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        given_shares = {f"{name}_share": float(share) for name, share in zip(PRIORITIES, shares, strict=True)}
        queues = queues_of(clock, slots=slots, **given_shares)
        counts = runner.run(saturate(queues, clock, 400, dict(zip(PRIORITIES, many, strict=True))))

        assert counts.total() >= 300
        for name, share in zip(PRIORITIES, shares, strict=True):
            assert share / sum(shares) == pytest.approx(counts[name] / counts.total(), rel=0.2)
        assert is_empty(queues)


request_plans = st.lists(
    st.tuples(
        st.sampled_from(PRIORITIES),
        st.floats(0, 20),  # comes after
        st.floats(0.1, 30),  # its deadline, from then
        st.floats(0.01, 8),  # how long it really takes
        st.floats(0.01, 8),  # how long it is expected to
        st.none() | st.floats(0, 10),  # patience
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(plans=request_plans, slots=st.integers(1, 3))
def test_nobody_waits_past_his_deadline_and_everybody_gets_a_slot_or_a_reason(plans, slots):
    clock = ManualClock()
    most = 0

    async def one(queues: Queues, priority, after, within, takes, expected, patience) -> NoSlot | None:
        nonlocal most
        await asyncio.sleep(after)
        began = clock.now_seconds()
        try:
            slot = await queues.enter(
                LLAMA,
                priority,
                until_seconds=began + within,
                expected_seconds=expected,
                patience_seconds=patience,
            )
        except NoSlot as refused:
            return refused
        finally:
            assert clock.now_seconds() - began <= within + 1e-3
            assert patience is None or clock.now_seconds() - began <= patience + 1e-3
        most = max(most, queues.running(LLAMA))
        await asyncio.sleep(takes)
        slot.release()
        return None

    async def all_of_them() -> None:
        queues = queues_of(clock, slots=slots)
        ends = await asyncio.gather(*(one(queues, *plan) for plan in plans))
        assert all(refused.words and 1 <= refused.retry_after_seconds <= 120 for refused in ends if refused)
        assert most <= slots
        assert is_empty(queues)

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        runner.run(all_of_them())


def nothing_is_left_of(queues: Queues) -> bool:
    """No entry, task or slot: a hundred more get theirs."""
    assert is_empty(queues)
    assert {asyncio.current_task()} == asyncio.all_tasks()
    for _ in range(100):
        slot = queues.take(LLAMA, expected_seconds=0.1)
        assert slot is not None
        slot.release()
    return True


@pytest.mark.parametrize("seed", range(5))
@in_virtual_time
async def test_a_thousand_cancels_at_random_moments_leak_nothing(clock, seed):
    """In one step with the grant, the limit, a drain or another cancel. Five seeds: 5,000 in all."""
    chance = random.Random(seed)
    slots = 2
    queues = queues_of(clock, slots=slots, idle_since=lambda place, at: chance.random() < 0.1)
    met: Counter[str] = Counter()
    where: dict[asyncio.Task[None], str] = {}

    async def one(at: int) -> None:
        me = asyncio.current_task()
        where[me] = "before"
        await asyncio.sleep(at / 10)  # on a grid: many meet in one step
        where[me] = "waiting"
        slot = await queues.enter(
            LLAMA,
            chance.choice(PRIORITIES),
            until_seconds=clock.now_seconds() + chance.choice([0.1, 1.0, LONG_SECONDS]),
            expected_seconds=0.1,
            patience_seconds=chance.choice([None, 0.5]),
            elsewhere=chance.choice([None, lambda: chance.random() < 0.5]),
            may_move=chance.choice([None, lambda: chance.random() < 0.5]),
        )
        where[me] = "running"
        assert queues.running(LLAMA) <= slots
        try:
            await asyncio.sleep(chance.randrange(3) / 10)
        finally:
            slot.release(chance.choice([None, clock.now_seconds() + 0.3]))

    async def cancel(at: int, task: asyncio.Task[None]) -> None:
        await asyncio.sleep((at + chance.randrange(4)) / 10)
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        if chance.random() < 0.02:
            queues.expel(LLAMA, "it fails")
        if task.cancel():
            met[where[task]] += 1

    moments = [chance.randrange(1000) for _ in range(2500)]
    tasks = [asyncio.create_task(one(at)) for at in moments]
    await asyncio.gather(*(cancel(at, task) for at, task in zip(moments, tasks, strict=True)))
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(1)

    assert [] == [end for end in ends if end is not None and not isinstance(end, NoSlot | asyncio.CancelledError)]
    assert met["waiting"] + met["running"] >= 1000
    assert met["waiting"] >= 300
    assert met["running"] >= 100
    assert nothing_is_left_of(queues)


@in_virtual_time
async def test_a_cancel_in_the_step_of_the_grant_hands_the_slot_on(clock):
    queues = queues_of(clock)
    slot = queues.take(LLAMA, expected_seconds=1.0)
    first, second = Asking(queues, clock), Asking(queues, clock)
    await settle()

    slot.release()
    first.task.cancel()
    await settle()

    assert first.task.cancelled()
    second.slot.release()
    assert is_empty(queues)


@in_virtual_time
async def test_a_release_in_the_step_of_the_cancel_goes_to_the_next(clock):
    queues = queues_of(clock)
    slot = queues.take(LLAMA, expected_seconds=1.0)
    first, second = Asking(queues, clock), Asking(queues, clock)
    await settle()

    first.task.cancel()
    slot.release()
    await settle()

    second.slot.release()
    assert is_empty(queues)


def test_a_class_with_no_share_at_all_is_last_and_nothing_breaks():
    clock = ManualClock()
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        queues = queues_of(clock, batch_share=0.0)
        counts = runner.run(saturate(queues, clock, 100, {"high": 2, "batch": 2}))

    assert counts["batch"] <= 4


@in_virtual_time
async def test_turns_that_a_class_did_not_need_are_not_owed_to_it(clock):
    queues = queues_of(clock)
    await saturate(queues, clock, 300, {"batch": 3})

    counts = await saturate(queues, clock, 100, {"high": 4, "batch": 4})

    assert 1 / 7 == pytest.approx(counts["batch"] / counts.total(), abs=0.03)
