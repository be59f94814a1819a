"""The rungs of the degradation ladder that the gateway makes: all breakers open, and a queue that is full.

As in test_ladder: a real controller, desk, ledger and policy in virtual time, and a real gateway on top. No model
server is asked: what opens a breaker and who holds a slot is said by the test.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dispatcher.gateway.relay import Gateway
from dispatcher.vocabulary.event import Completed, Turned
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.gateway_settings import GatewaySettings, QueueSettings
from dispatcher.vocabulary.relay import ENDPOINTS, Arrived, Headers
from dispatcher.vocabulary.request import Asked
from dispatcher.wire.decision import no_model
from tests.builders import LLAMA, PHI, QWEN
from tests.virtual_house import House, a_house, told, up
from tests.virtual_time import in_virtual_time

AT_ONCE = Asked(text="hi", wait_seconds=0.0)
ALL = (PHI, LLAMA, QWEN)
OPEN_SECONDS = 30.0
CHAT = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).encode()


@dataclass
class Listener:
    """The client's side: what it is told, whole."""

    left: bool = False
    status: int | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    async def start(self, status: int, headers: Headers) -> None:
        raise AssertionError("nothing is begun here")

    write = finish = cut = start  # type: ignore[assignment]

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        self.status, self.body, self.headers = status, body, dict(headers)


def a_gateway(house: House) -> Gateway:
    gateway = Gateway(
        select=house.desk.select,
        recommend=house.desk.recommend,
        end_lease=lambda lease_id: house.controller.tenancy.end(lease_id, "outcome"),
        fleet=house.controller.view,
        settings=lambda: house.settings,
        clock=house.clock,
        emit=house.emit,
        jitter=lambda: 0.5,
    )
    house.breaker = gateway.breakers.seen
    return gateway


def break_open(gateway: Gateway, *places: Place) -> None:
    for place in places:
        for _ in range(5):
            gateway.breakers.failed(place, "it said 500")


def is_ready(house: House) -> bool:
    return house.desk.recommend(Asked()).chosen is not None


async def asks(gateway: Gateway, **headers: str) -> Listener:
    listener = Listener()
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    arrived = Arrived(endpoint=ENDPOINTS["/v1/chat/completions"], headers=given, body=CHAT, request_id="r-1")
    await gateway.relay(arrived, listener)
    return listener


def ends(house: House) -> list[str]:
    return [event.status for event in house.events if isinstance(event, Completed)]


def turned(house: House) -> list[tuple[str, str]]:
    return [(event.subject, event.after) for event in house.events if isinstance(event, Turned) and _breaker(event)]


def _breaker(event: Turned) -> bool:
    return event.what == "breaker"


# ── all breakers open ─────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_all_breakers_open_nobody_is_named_and_the_soonest_probe_is_when_to_ask_again(clock):
    house = a_house(clock)
    gateway = a_gateway(house)
    async with house.open():
        await up(house, LLAMA)
        break_open(gateway, PHI, LLAMA)
        assert is_ready(house), "one is left, although it must be started"
        await asyncio.sleep(10.0)
        break_open(gateway, QWEN)
        selected = await house.desk.select(AT_ONCE)
        shape = no_model(selected.decision, "r-1")

        assert (None, False) == (selected.decision.chosen, is_ready(house))
        assert {"breaker_open"} == {one.rejection.rule for one in selected.decision.candidates if one.rejection}
        assert (503, 20, 20) == (
            shape.status,
            shape.retry_after_seconds,
            house.desk.recommend(Asked()).retry_after_seconds,
        )
        told_so = await asks(gateway)
        assert (503, b"20", ["shed"]) == (told_so.status, told_so.headers[b"retry-after"], ends(house))
        gateway.breakers.close()


@in_virtual_time
async def test_when_a_breaker_half_opens_its_model_is_named_again_and_gets_one_probe(clock):
    house = a_house(clock, places=(LLAMA,))
    gateway = a_gateway(house)
    async with house.open():
        await up(house, LLAMA)
        break_open(gateway, LLAMA)
        assert not is_ready(house)
        await asyncio.sleep(OPEN_SECONDS + 0.1)
        assert [("docker:llama", "open"), ("docker:llama", "half_open")] == turned(house), "told when it happens"
        assert is_ready(house)

        probe = gateway.breakers.goes(LLAMA, clock.now_seconds() + 60.0)  # the probe is on its way
        while_out = await house.desk.select(AT_ONCE)
        assert (None, False) == (while_out.decision.chosen, is_ready(house))
        assert 60 == while_out.decision.retry_after_seconds

        gateway.breakers.passed(LLAMA, probe)
        assert is_ready(house)
        probe = gateway.breakers.goes(LLAMA, clock.now_seconds() + 60.0)
        gateway.breakers.passed(LLAMA, probe)
        selected = await house.desk.select(AT_ONCE)
        assert (LLAMA, PlaceState.READY, True) == told(selected)
        assert ("docker:llama", "closed") == turned(house)[-1]


@in_virtual_time
async def test_an_open_breaker_means_the_next_model_and_not_an_error(clock):
    house = a_house(clock)
    gateway = a_gateway(house)
    async with house.open():
        await up(house, LLAMA)
        await up(house, PHI)
        first = house.desk.recommend(AT_ONCE).chosen
        assert first is not None
        break_open(gateway, first.place)
        selected = await house.desk.select(AT_ONCE)

        assert selected.decision.chosen is not None
        assert first.place != selected.decision.chosen.place
        assert is_ready(house)
        gateway.breakers.close()


# ── queue full ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("priority", ["high", "normal", "batch"])
def test_queue_full_select_and_readiness_go_on_and_the_gateway_says_when_to_come_back(priority):
    @in_virtual_time
    async def full(clock: Any) -> None:
        house = a_house(clock, places=(LLAMA,))
        one = QueueSettings(high_entries=1, normal_entries=1, batch_entries=1)
        house.settings = replace(house.settings, gateway=GatewaySettings(queue=one))
        gateway = a_gateway(house)
        async with house.open():
            await up(house, LLAMA)
            slot = gateway._queues.take(LLAMA, expected_seconds=7.0)
            assert slot is not None
            waiting = asyncio.create_task(asks(gateway, x_dispatcher_priority=priority))
            await house.until(lambda: sum(line.waiting[priority] for line in gateway.lines()) == 1, within_seconds=5.0)
            refused = await asks(gateway, x_dispatcher_priority=priority)
            selected = await house.desk.select(AT_ONCE)

            again_seconds = int(refused.headers[b"retry-after"])
            assert (503, True) == (refused.status, 1 <= again_seconds <= 120)
            assert b"true" == refused.headers[b"x-should-retry"]
            assert "queue" in json.loads(refused.body)["error"]["message"]
            assert (LLAMA, True) == (selected.decision.chosen and selected.decision.chosen.place, is_ready(house))
            assert ["shed"] == ends(house)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert ["shed", "drained"] == ends(house)
            slot.release()
            await gateway.close()

    full()
