"""Faults of ours in the loop and its tasks: counted, told once, outlived; in virtual time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from dispatcher.lifecycle.surviving import Surviving
from dispatcher.vocabulary.event import Erred
from dispatcher.vocabulary.fleet import PlaceState
from tests.builders import LLAMA
from tests.virtual_house import House, a_house, ready, up
from tests.virtual_time import in_virtual_time

S = PlaceState


def counted(house: House) -> list[str]:
    return [event.error_type for event in house.events if isinstance(event, Erred)]


def tracebacks(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info and record.levelno == logging.ERROR]


@in_virtual_time
async def test_news_that_cannot_be_heard_are_seen_at_the_next_look(clock, caplog):
    caplog.set_level(logging.INFO)
    house = a_house(clock)
    house.outlives_faults = True

    async def broken() -> None:
        raise KeyError("Actor")

    hear, house.engine.wake = house.engine.wake, broken
    async with house.open():
        await asyncio.sleep(32.0)
        assert 7 == len(counted(house)), "once per interval: a wake that fails at once wakes nobody"
        assert [
            'wake=failed fault="KeyError(\'Actor\')" consequence="the engine\'s news are seen at the next look"'
        ] == (tracebacks(caplog))
        await up(house, LLAMA, dwelt=False)

        house.engine.wake = hear
        await asyncio.sleep(10.0)
        house.engine.tell()
        await asyncio.sleep(0.1)
        assert (1, 1) == (len(tracebacks(caplog)), caplog.text.count("wake=goes_on"))


@in_virtual_time
async def test_a_round_that_fails_is_followed_by_the_next_and_does_not_count_as_one(clock, caplog):
    house = a_house(clock)
    house.outlives_faults = True
    async with house.open():
        lease = await ready(house, LLAMA)
        before = house.controller.reconciled_at_seconds

        def broken():
            raise ZeroDivisionError("of ours")

        house.snapshot = broken
        view = house.controller.view
        house.controller.view = broken
        await asyncio.sleep(60.0)
        house.snapshot, house.controller.view = None, view

        assert {"internal"} == set(counted(house)) and len(counted(house)) >= 9
        assert 1 == len(tracebacks(caplog)), "told once"
        assert before == house.controller.reconciled_at_seconds, "so that the heartbeat tells of it"
        await asyncio.sleep(10.0)
        assert house.controller.reconciled_at_seconds > before
        assert (S.READY, {}) == (house.state(LLAMA), house.ends())
        house.give_back(lease)


@in_virtual_time
async def test_a_round_that_fails_again_and_again_is_not_repeated_in_a_tight_loop(clock):
    house = a_house(clock)
    house.outlives_faults = True
    async with house.open():
        rounds = 0

        def broken():
            nonlocal rounds
            rounds += 1
            house.engine.tell()
            raise ZeroDivisionError("of ours")

        view, house.controller.view = house.controller.view, broken
        await asyncio.sleep(30.0)
        house.controller.view = view

        assert 5 <= rounds <= 31


@in_virtual_time
async def test_a_fault_after_an_actions_end_costs_that_action_alone(clock, caplog):
    house = a_house(clock)
    house.outlives_faults = True
    tenancy = house.controller.tenancy
    async with house.open():
        became_ready, failures = tenancy.ready, 1

        def broken(place, load_seconds):
            nonlocal failures
            if failures:
                failures -= 1
                raise ZeroDivisionError("of ours")
            became_ready(place, load_seconds)

        tenancy.ready = broken
        await up(house, LLAMA, dwelt=False)

        assert (["internal"], 1) == (counted(house), len(tracebacks(caplog)))


@in_virtual_time
async def test_being_cancelled_is_no_fault(clock):
    house = a_house(clock, engine={"load_seconds": 100.0})
    async with house.open():
        house.lease(LLAMA)
        await asyncio.sleep(10.0)

    assert [] == counted(house)


@in_virtual_time
async def test_what_goes_wrong_while_it_is_counted_ends_nothing_either(clock):
    def broken(event) -> None:
        raise OSError("the page is gone")

    Surviving(emit=broken, clock=clock).fault("reconcile", ValueError("of ours"), "none")


# ── pauses ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_an_interval_made_shorter_by_a_reload_counts_from_the_pause_on_that_is_under_way(clock):
    house = a_house(clock, reconcile_interval_seconds=3600.0)
    async with house.open():
        await asyncio.sleep(30.0)
        assert clock.now_seconds() - house.controller.reconciled_at_seconds >= 29.0
        house.settings = a_house(clock, reconcile_interval_seconds=20.0).settings
        await asyncio.sleep(6.0)
        assert clock.now_seconds() - house.controller.reconciled_at_seconds <= 6.0


@pytest.mark.parametrize("interval_seconds", [1.0, 7.0, 60.0])
@in_virtual_time
async def test_looking_up_during_a_pause_changes_nothing_of_its_length(clock, interval_seconds):
    house = a_house(clock, reconcile_interval_seconds=interval_seconds)
    looks: list[float] = []
    seen = house.engine.list

    async def counted_list():
        looks.append(clock.now_seconds())
        return await seen()

    house.engine.list = counted_list
    async with house.open():
        await asyncio.sleep(10 * interval_seconds)

    assert 10 <= len(looks) <= 11
