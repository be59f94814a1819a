"""What is asked by hand: stop and start say until when, and a pin that means nothing is refused."""

from __future__ import annotations

import pytest

from dispatcher.daemon.operations import Operations
from dispatcher.errors import HistoryUnavailable, NotNow
from dispatcher.vocabulary.event import Turned
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.words import Moment
from tests.builders import LLAMA, PHI
from tests.virtual_house import House, a_house, ready, up
from tests.virtual_time import in_virtual_time

OUTSIDE = Place(server="docker:gemma", model="gemma2:2b")


class Pins:
    """The part of the store that pins are kept in."""

    def __init__(self) -> None:
        self.pinned: str | None = None
        self.told: list[object] = []  # the events of its house
        self.told_before_flush = 0
        self.full = False

    async def pin(self, model: str | None) -> None:
        self.pinned = model

    async def forget(self, model: str, at_seconds: float) -> None:
        self.forgotten = {model: at_seconds}

    async def flush(self) -> None:
        self.told_before_flush = len(self.told)
        if self.full:
            raise HistoryUnavailable("the disk is full")


def the_operations(house: House) -> tuple[Operations, Pins]:
    pins = Pins()
    pins.told = house.events
    operations = Operations(
        desk=house.desk,
        controller=house.controller,
        store=pins,  # type: ignore[arg-type]
        settings=lambda: house.settings,
        clock=house.clock,
        emit=house.emit,
    )
    return operations, pins


@in_virtual_time
async def test_a_stop_says_until_when_it_waits_and_a_start_meanwhile_says_so_too(clock):
    house = a_house(clock)
    async with house.open():
        operations, _ = the_operations(house)
        lease = await ready(house, LLAMA)
        until = Moment(house.view(LLAMA).leased_until_seconds or 0.0)

        stopped = await operations.act("llama3.2:3b", "stop")
        with pytest.raises(NotNow) as refused:
            await operations.act("llama3.2:3b", "start")

        assert (
            f"waits for 1 lease(s) to end, until {until} UTC at the longest unless one is renewed, and for what it "
            "still computes"
        ) == stopped["because"]
        assert f"is draining, until {until} UTC at the latest" in str(refused.value)

        house.give_back(lease)
        await house.until(lambda: house.state(LLAMA) is PlaceState.STOPPED)


@in_virtual_time
async def test_a_stop_of_what_nobody_uses_is_one(clock):
    house = a_house(clock)
    async with house.open():
        operations, _ = the_operations(house)
        await up(house, LLAMA)

        assert "stopping" == (await operations.act("llama3.2:3b", "stop"))["because"]


@in_virtual_time
async def test_only_its_own_pin_is_taken_away_and_the_rest_is_said(clock):
    house = a_house(clock)
    async with house.open():
        operations, pins = the_operations(house)
        nothing = await operations.act("phi3:mini", "unpin")
        await operations.act("llama3.2:3b", "pin")
        another = await operations.act("phi3:mini", "unpin")
        kept = pins.pinned
        own = await operations.act("llama3.2:3b", "unpin")

        assert ("phi3:mini is not pinned", "phi3:mini is not pinned; llama3.2:3b is", "") == (
            nothing["because"],
            another["because"],
            own["because"],
        )
        assert ("llama3.2:3b", None, None) == (kept, pins.pinned, house.controller.tenancy.pinned_model)


@in_virtual_time
async def test_a_model_is_forgotten_on_disk_and_then_everybody_is_told(clock):
    house = a_house(clock)
    async with house.open():
        operations, pins = the_operations(house)
        told = await operations.act("llama3.2:3b", "forget")

        (turned,) = [event for event in house.events if isinstance(event, Turned) and event.what == "profile"]
        assert ("forget", "llama3.2:3b", "forgotten") == (told["action"], turned.subject, turned.after)
        assert {"llama3.2:3b": turned.at_seconds} == pins.forgotten


@in_virtual_time
async def test_what_is_unlearned_is_on_the_disk_when_forgetting_is_answered_or_owed_when_it_is_full(clock):
    house = a_house(clock)
    async with house.open():
        operations, pins = the_operations(house)
        await operations.act("llama3.2:3b", "forget")

        said = [isinstance(event, Turned) and event.what == "profile" for event in house.events]
        assert any(said[: pins.told_before_flush]), "the footprints are written because of the event"
        pins.full = True
        assert "forget" == (await operations.act("llama3.2:3b", "forget"))["action"]


@in_virtual_time
async def test_a_model_outside_the_chain_is_not_pinned(clock):
    house = a_house(clock, places=(PHI, OUTSIDE))
    async with house.open():
        operations, pins = the_operations(house)
        with pytest.raises(NotNow, match=r"gemma2:2b is not in the chain .*add it to models:"):
            await operations.act("gemma2:2b", "pin")

        assert None is pins.pinned


CROWD = tuple(Place(server=f"docker:a-{number:02}", model="phi3:mini") for number in range(40))


@in_virtual_time
async def test_a_quarantined_place_behind_more_others_than_a_decision_stores_is_started_by_hand(clock):
    house = a_house(clock, places=(*CROWD, LLAMA))
    house.engine.servers[LLAMA].fail_loads = 3
    async with house.open():
        operations, _ = the_operations(house)
        for _ in range(3):
            await house.until(lambda: house.state(LLAMA) is PlaceState.STOPPED)
            lease = house.lease(LLAMA)
            await house.until(lambda lease=lease: lease.id in house.ends())
        await house.until(lambda: house.state(LLAMA) is PlaceState.QUARANTINED)

        assert str(LLAMA) == (await operations.act("llama3.2:3b", "start"))["place"]
        await house.until(lambda: house.state(LLAMA) is PlaceState.READY)


@in_virtual_time
async def test_why_it_cannot_be_started_is_told_of_itself_however_many_others_there_are(clock):
    house = a_house(clock, places=(*CROWD, LLAMA))
    house.engine.servers[LLAMA].installed = False
    async with house.open():
        operations, _ = the_operations(house)

        with pytest.raises(NotNow, match="the model is not installed there: ollama pull llama3"):
            await operations.act("llama3.2:3b", "start")
