from __future__ import annotations

import asyncio

import pytest

from dispatcher.clock import ManualClock
from dispatcher.gateway.queue import NoSlot, Queues
from dispatcher.vocabulary.queue import Line
from tests.builders import LLAMA, PHI
from tests.gateway.waiting import Asking, is_empty, queues_of, settings_of, settle
from tests.virtual_time import in_virtual_time


def line_of(queues: Queues) -> Line:
    (line,) = queues.lines()
    return line


# ── slots ──


def test_a_free_slot_is_taken_without_waiting_and_the_next_one_is_told_that_there_is_none():
    queues = queues_of(ManualClock(), slots=2)

    taken = [queues.take(LLAMA, expected_seconds=1.0) for _ in range(3)]

    assert [True, True, False] == [slot is not None for slot in taken]
    assert 2 == queues.running(LLAMA)
    assert queues.take(PHI, expected_seconds=1.0) is not None


def test_a_slot_given_back_twice_counts_once():
    queues = queues_of(ManualClock(), slots=2)
    first, _ = (queues.take(LLAMA, expected_seconds=1.0) for _ in range(2))
    assert first is not None

    first.release()
    first.release(draining_until_seconds=ManualClock().now_seconds() + 10)

    assert (1, 0) == (line_of(queues).running, line_of(queues).draining)


@in_virtual_time
async def test_nobody_overtakes_those_who_wait(clock):
    queues = queues_of(clock)
    slot = queues.take(LLAMA, expected_seconds=1.0)
    waiting = [Asking(queues, clock) for _ in range(3)]
    await settle()

    slot.release()
    assert queues.take(LLAMA, expected_seconds=1.0) is None
    await settle()

    assert [False, True, True] == [one.waits for one in waiting]
    waiting[0].slot.release()
    await settle()
    assert [False, False, True] == [one.waits for one in waiting]
    waiting[1].slot.release()
    await settle()
    waiting[2].slot.release()
    assert is_empty(queues)


@in_virtual_time
async def test_slots_that_a_reload_takes_away_or_adds_are_respected(clock):
    slots = 2
    queues = Queues(
        settings=settings_of, clock=clock, slots=lambda place: slots, idle_since=lambda place, at_seconds: False
    )
    running = [queues.take(LLAMA, expected_seconds=1.0) for _ in range(2)]
    waiting = [Asking(queues, clock) for _ in range(3)]
    await settle()

    slots = 1
    running[0].release()
    await settle()
    assert [True, True, True] == [one.waits for one in waiting]

    slots = 3  # nobody gives these back
    assert queues.take(LLAMA, expected_seconds=1.0) is None  # they are not for one who comes now
    await asyncio.sleep(0.3)
    assert [False, False, True] == [one.waits for one in waiting]
    waiting[2].task.cancel()


@in_virtual_time
async def test_where_nothing_is_served_nobody_knows_how_long_it_takes(clock):
    queues = queues_of(clock, slots=0)
    one = Asking(queues, clock, until_seconds=clock.now_seconds() + 10)
    await settle()

    assert line_of(queues).estimated_wait_seconds is None
    await asyncio.sleep(11)
    assert 1 <= one.refusal.retry_after_seconds <= 120


# ── limits ──


@pytest.mark.parametrize(
    ("priority", "waited_seconds", "because"),
    [
        pytest.param("high", 30, "gateway.queue.high_wait", id="high"),
        pytest.param("normal", 60, "gateway.queue.normal_wait", id="normal"),
        pytest.param("batch", 600, "gateway.queue.batch_wait", id="batch"),
    ],
)
@in_virtual_time
async def test_nobody_waits_longer_than_his_class_may(clock, priority, waited_seconds, because):
    queues, began = queues_of(clock), clock.now_seconds()
    queues.take(LLAMA, expected_seconds=1.0)

    with pytest.raises(NoSlot) as refused:
        await Asking(queues, clock, priority).task

    assert waited_seconds == pytest.approx(clock.now_seconds() - began)
    assert because in refused.value.words
    assert not refused.value.moved


@pytest.mark.parametrize(
    ("asked", "because"),
    [
        pytest.param({"until": 7.0}, "its deadline", id="the caller's deadline"),
        pytest.param({"patience_seconds": 7.0}, "another model may be sooner", id="patience"),
        pytest.param({"until": 9.0, "patience_seconds": 7.0}, "another model may be sooner", id="the sooner of both"),
    ],
)
@in_virtual_time
async def test_nobody_waits_past_his_own_limit(clock, asked, because):
    queues, began = queues_of(clock), clock.now_seconds()
    queues.take(LLAMA, expected_seconds=1.0)
    until = {"until_seconds": began + asked.pop("until")} if "until" in asked else {}

    with pytest.raises(NoSlot) as refused:
        await Asking(queues, clock, **until, **asked).task

    assert 7.0 == pytest.approx(clock.now_seconds() - began)
    assert because in refused.value.words
    assert 0 == line_of(queues).waiting["normal"]


@in_virtual_time
async def test_one_whose_patience_is_over_stays_while_nobody_else_would_serve_him(clock):
    queues, began, free = queues_of(clock), clock.now_seconds(), clock.now_seconds() + 20
    queues.take(LLAMA, expected_seconds=1.0)
    one = Asking(queues, clock, patience_seconds=7.0, elsewhere=lambda: clock.now_seconds() >= free)

    await asyncio.wait([one.task])

    assert 20.0 == pytest.approx(clock.now_seconds() - began, abs=1.0)
    assert ("another model is free" in one.refusal.words, True) == (True, one.refusal.moved)


@in_virtual_time
async def test_one_goes_elsewhere_at_a_time_as_long_as_there_is_room(clock):
    queues, rooms = queues_of(clock), 2
    queues.take(LLAMA, expected_seconds=1.0)
    asked = {"patience_seconds": 1.0, "elsewhere": lambda: rooms > 0}
    waiting = [Asking(queues, clock, **asked) for _ in range(4)]
    for _ in range(80):
        await asyncio.sleep(0.1)
        rooms = 2 - sum(not one.waits for one in waiting)  # who leaves takes one

    assert [False, False, True, True] == sorted(one.waits for one in waiting)
    for one in waiting:
        one.task.cancel()


@pytest.mark.parametrize("within", [3.0, 7.0, 7.5, 8.0])
@in_virtual_time
async def test_with_nothing_free_elsewhere_the_deadline_still_holds(clock, within):
    queues, began = queues_of(clock), clock.now_seconds()
    queues.take(LLAMA, expected_seconds=1.0)
    one = Asking(queues, clock, until_seconds=began + within, patience_seconds=7.0, elsewhere=lambda: False)

    await asyncio.wait([one.task])

    assert within == pytest.approx(clock.now_seconds() - began)
    assert "its deadline" in one.refusal.words


@in_virtual_time
async def test_who_has_no_time_left_is_refused_even_where_a_slot_is_free(clock):
    queues = queues_of(clock)
    one = Asking(queues, clock, until_seconds=clock.now_seconds())
    await settle()

    assert "its deadline" in one.refusal.words
    assert is_empty(queues)


@in_virtual_time
async def test_who_would_wait_in_vain_is_told_at_once_and_when_to_come_back(clock):
    queues = queues_of(clock)
    for _ in range(3):  # what is expected here has proved right
        slot = queues.take(LLAMA, expected_seconds=20.0)
        await asyncio.sleep(20)
        slot.release()
    queues.take(LLAMA, expected_seconds=20.0)
    first = Asking(queues, clock, expected_seconds=20.0)
    await settle()

    late = Asking(queues, clock, until_seconds=clock.now_seconds() + 30, expected_seconds=20.0)
    in_time = Asking(queues, clock, until_seconds=clock.now_seconds() + 50, expected_seconds=20.0)
    await settle()

    assert 40 == pytest.approx(late.refusal.retry_after_seconds, abs=1)
    assert "about 40 s; it waits 30 s: its deadline" in late.refusal.words
    assert [True, True] == [first.waits, in_time.waits]


@in_virtual_time
async def test_a_prediction_that_nothing_has_confirmed_turns_nobody_away(clock):
    """The first of a cold profile may be predicted at several times what it takes."""
    queues = queues_of(clock)
    slot = queues.take(LLAMA, expected_seconds=20.0)
    one = Asking(queues, clock, until_seconds=clock.now_seconds() + 10)
    await asyncio.sleep(1)

    slot.release()
    await settle()
    assert not one.waits
    one.slot.release()


@in_virtual_time
async def test_what_is_estimated_follows_what_it_really_takes(clock):
    queues = queues_of(clock)
    for _ in range(20):
        slot = queues.take(LLAMA, expected_seconds=10.0)
        await asyncio.sleep(2)
        slot.release()
    queues.take(LLAMA, expected_seconds=10.0)
    waiting = [Asking(queues, clock, expected_seconds=10.0) for _ in range(4)]
    await settle()

    assert 10.0 == pytest.approx(line_of(queues).estimated_wait_seconds, rel=0.01)
    for one in waiting:
        one.task.cancel()


@in_virtual_time
async def test_a_full_class_refuses_one_more_and_leaves_the_others_alone(clock):
    queues = queues_of(clock, high_entries=2)
    queues.take(LLAMA, expected_seconds=3.0)
    waiting = [Asking(queues, clock, "high") for _ in range(3)]
    other = Asking(queues, clock, "normal")
    await settle()

    assert [True, True, False] == [one.waits for one in waiting]
    assert "gateway.queue.high_entries is 2" in waiting[2].refusal.words
    assert 5 <= waiting[2].refusal.retry_after_seconds <= 6
    assert other.waits
    for one in (*waiting, other):
        one.task.cancel()


@in_virtual_time
async def test_a_failing_place_sends_away_those_who_have_somewhere_to_go_at_that_moment(clock):
    queues, somewhere = queues_of(clock), False
    queues.take(LLAMA, expected_seconds=1.0)
    movable, stays = Asking(queues, clock, may_move=lambda: somewhere), Asking(queues, clock)
    await settle()

    queues.expel(LLAMA, "docker:llama failed once")
    await settle()
    assert [True, True] == [movable.waits, stays.waits]
    somewhere = True

    queues.expel(LLAMA, "docker:llama fails")
    await settle()

    assert ("docker:llama fails", True) == (movable.refusal.words, movable.refusal.moved)
    assert stays.waits
    stays.task.cancel()


@in_virtual_time
async def test_dismissed_nobody_waits_any_longer_and_no_queue_was_full(clock):
    queues = queues_of(clock)
    for place in (LLAMA, PHI):
        queues.take(place, expected_seconds=1.0)
    waiting = [Asking(queues, clock, place=place) for place in (LLAMA, PHI)]
    await settle()

    queues.dismiss("it leaves")
    await settle()

    assert [("it leaves", True)] * 2 == [(one.refusal.words, one.refusal.moved) for one in waiting]


@in_virtual_time
async def test_after_the_machine_slept_nobody_is_granted_what_he_no_longer_wants(clock):
    """Timers do not run while a lid is closed; the clock does."""
    queues = queues_of(clock)
    slot = queues.take(LLAMA, expected_seconds=1.0)
    late, still = Asking(queues, clock, "high"), Asking(queues, clock, "batch")
    await settle()

    clock.advance(31)
    slot.release()
    await settle()

    assert "high_wait" in late.refusal.words
    still.slot.release()
    assert is_empty(queues)


# ── draining ──


@in_virtual_time
async def test_a_cancelled_prompt_keeps_its_slot_until_the_engine_is_seen_idle(clock):
    idle_from, began = clock.now_seconds() + 3.1, clock.now_seconds()
    queues = queues_of(clock, idle_since=lambda place, at: clock.now_seconds() >= idle_from > at)
    one_slot = queues.take(LLAMA, expected_seconds=1.0)
    one = Asking(queues, clock)
    await settle()

    one_slot.release(draining_until_seconds=began + 60)
    await settle()
    assert (0, 1) == (line_of(queues).running, line_of(queues).draining)
    assert one.waits

    await one.task
    assert 3.25 == pytest.approx(clock.now_seconds() - began)
    assert (1, 0) == (line_of(queues).running, line_of(queues).draining)


@in_virtual_time
async def test_a_slot_drains_no_longer_than_it_was_told(clock):
    queues, began = queues_of(clock), clock.now_seconds()
    slot = queues.take(LLAMA, expected_seconds=1.0)
    one = Asking(queues, clock)
    await settle()

    slot.release(draining_until_seconds=began + 5)
    await one.task

    assert 5.0 == pytest.approx(clock.now_seconds() - began)


# ── what is seen of it ──


@in_virtual_time
async def test_a_line_tells_who_runs_who_waits_and_for_how_long(clock):
    queues = queues_of(clock)
    queues.take(LLAMA, expected_seconds=4.0)
    waiting = [Asking(queues, clock, priority) for priority in ("high", "batch", "batch")]
    await asyncio.sleep(2)

    line = line_of(queues)
    assert (LLAMA, 1, 0, 1) == (line.place, line.running, line.draining, line.slots)
    assert {"high": 1, "normal": 0, "batch": 2} == line.waiting
    assert {"high": 64, "normal": 256, "batch": 1024} == line.limits
    assert 2.0 == pytest.approx(line.oldest_wait_seconds)
    assert 2.0 + 1.0 + 1 / 3 == pytest.approx(line.estimated_wait_seconds)  # batch: a third of a turn before his
    for one in waiting:
        one.task.cancel()


def test_places_that_are_gone_are_forgotten_once_nobody_is_there():
    queues = queues_of(ManualClock())
    slots = [queues.take(place, expected_seconds=1.0) for place in (LLAMA, PHI)]

    slots[0].release()
    queues.forget({PHI})
    assert [PHI] == [line.place for line in queues.lines()]
    queues.forget(set())
    assert [PHI] == [line.place for line in queues.lines()]
    slots[1].release()
    queues.forget(set())
    assert () == queues.lines()
