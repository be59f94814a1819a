"""A request that is tried again elsewhere, as the gateway does: without the places that failed it, and the disk."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from dispatcher.vocabulary.event import Leased
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB
from dispatcher.wire.decision import no_model
from tests.builders import LLAMA, PHI, QWEN
from tests.virtual_house import a_house, told, up
from tests.virtual_time import in_virtual_time

S = PlaceState
SIMPLE = Asked(text="hi", complexity="simple")
LLAMA_NAMED = Asked(model="llama3.2:3b", text="hi")


@in_virtual_time
async def test_where_an_attempt_just_failed_is_not_chosen_and_the_words_say_why(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, LLAMA)
        assert LLAMA == (await house.desk.select(SIMPLE)).lease.place
        words = "an attempt of this request just failed here: no byte of an answer within 5.0 s"
        selected = await house.desk.select(SIMPLE, without={LLAMA: words})

        assert LLAMA != selected.lease.place
        rejections = {one.place: one.rejection for one in selected.decision.candidates if one.rejection}
        assert ("unavailable", words) == (rejections[LLAMA].rule, rejections[LLAMA].because)
        assert "fallback" == house.decided()[-1].outcome


@in_virtual_time
async def test_the_places_that_failed_and_those_that_cannot_be_started_are_out_together(clock):
    house = a_house(clock)
    async with house.open():
        house.engine.servers[QWEN].fail_loads = 1
        selected = await house.desk.select(SIMPLE, without={LLAMA: "it answered 500"})
        rules = {one.place: one.rejection.rule for one in selected.decision.candidates if one.rejection}

        assert "start_failed" in house.ends().values()
        assert {LLAMA: "unavailable", QWEN: "reservation_lost"} == rules
        assert (PHI, S.READY, True) == told(selected)


@in_virtual_time
async def test_what_the_ledger_refuses_is_decided_again_without_it_and_without_what_failed(clock):
    house = a_house(clock)
    async with house.open():
        tenancy = house.controller.tenancy
        tenancy.ledger = replace(tenancy.ledger, room_bytes=4 * GIB)  # the view still says 15
        selected = await house.desk.select(
            Asked(text="hi", complexity="complex", wait_seconds=0.0), without={LLAMA: "it answered 500"}
        )
        rules = {one.place: one.rejection.rule for one in selected.decision.candidates if one.rejection}

        assert PHI == selected.lease.place
        assert {LLAMA: "unavailable", QWEN: "reservation_lost"} == rules


@in_virtual_time
async def test_a_lease_at_a_place_that_failed_is_not_waited_for(clock):
    house = a_house(clock, total_bytes=8 * GIB)
    async with house.open():
        await up(house, LLAMA)
        await house.desk.select(LLAMA_NAMED)
        began = clock.now_seconds()
        selected = await house.desk.select(Asked(model="qwen2.5:7b", text="x"), without={QWEN: "it answered 500"})

        assert (None, began) == (selected.decision.chosen, clock.now_seconds())
        shape = no_model(selected.decision, "r-1")
        assert ("urn:dispatcher:no_usable_model", True) == (shape.type, shape.should_retry)


@in_virtual_time
async def test_a_lease_for_a_caller_of_this_process_is_kept_in_memory_only(clock):
    house = a_house(clock)
    house.disk_full = True
    async with house.open():
        await up(house, LLAMA)
        began = clock.now_seconds()
        selected = await house.desk.select(LLAMA_NAMED, durable=False)

        assert (LLAMA, S.READY, True) == told(selected)
        assert began == clock.now_seconds(), "no write is awaited"
        assert [] == house.recorded
        assert (False, False) == (selected.durable, selected.lease.durable)
        assert "not_durable" not in [reason.code for reason in selected.decision.reasons]
        assert 1 == house.view(LLAMA).leases, "it counts like any other"
        house.give_back(selected.lease)
        assert ["granted", "ended"] == [event.what for event in house.events if isinstance(event, Leased)]


@in_virtual_time
async def test_a_client_that_leaves_gives_a_lease_in_memory_back_too(clock):
    house = a_house(clock, engine={"load_seconds": 30.0})
    async with house.open():
        leaving = asyncio.create_task(house.desk.select(LLAMA_NAMED, durable=False))
        await asyncio.sleep(5.0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

        assert 0 == house.live_leases()


@in_virtual_time
async def test_the_same_request_once_more_is_a_fallback_also_where_nothing_is_left_out_and_is_wanted_once(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, LLAMA)
        house.give_back((await house.desk.select(SIMPLE)).lease)
        wanted = house.tally.profiles(clock.now_seconds()).wanted_per_second[LLAMA.model]
        house.give_back((await house.desk.select(SIMPLE, again=True)).lease)

        assert ["chosen", "fallback"] == [event.outcome for event in house.decided()]
        assert wanted == house.tally.profiles(clock.now_seconds()).wanted_per_second[LLAMA.model]
