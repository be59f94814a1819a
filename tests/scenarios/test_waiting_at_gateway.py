"""Who waits at the gateway, for a load, a turn or a group, and what happens to him meanwhile: one
failure, a breaker, too much that waits already, or the end of the daemon.

As test_ladder_of_gateway: everything is real but the engine and the clock, and no model server is asked.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from dispatcher.gateway.answering import Answering
from dispatcher.gateway.errand import Errand
from dispatcher.gateway.relay import Gateway
from dispatcher.vocabulary.event import Decided
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.gateway_settings import GatewaySettings, QueueSettings
from dispatcher.vocabulary.relay import ENDPOINTS, Arrived
from dispatcher.wire import surface
from tests.builders import LLAMA, PHI, QWEN
from tests.gateway.waiting import settle
from tests.scenarios.test_ladder_of_gateway import Listener, a_gateway, break_open, ends
from tests.virtual_house import House, a_house, up
from tests.virtual_time import in_virtual_time

ENDPOINT = ENDPOINTS["/v1/chat/completions"]
S = PlaceState


def arrived_for(place: Place, **headers: str) -> Arrived:
    """With the name of the model there."""
    body = json.dumps({"model": place.model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    given = [(f"x-dispatcher-{name}".encode(), value.encode()) for name, value in headers.items()]
    return Arrived(endpoint=ENDPOINT, headers=given, body=body, request_id="r-1")


def ask(gateway: Gateway, place: Place, **headers: str) -> tuple[asyncio.Task[None], Listener]:
    listener = Listener()
    return asyncio.create_task(gateway.relay(arrived_for(place, **headers), listener)), listener


def an_errand(house: House, place: Place, **headers: str) -> Errand:
    arrived = arrived_for(place, **headers)
    return Errand(
        arrived=arrived,
        told=surface.told(ENDPOINT, arrived.body, surface.wishes(arrived.headers)),
        named=place.model,
        answering=Answering(Listener(), ENDPOINT, "r-1", stream=False, heartbeat_seconds=0.0),
        began_seconds=house.clock.now_seconds(),
        until_seconds=None,
    )


def error_of(listener: Listener) -> Any:
    return json.loads(listener.body)["error"]


# ── a failure of the place he waits at ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ready", "taken", "happens", "headers", "leaves"),
    [
        pytest.param([LLAMA], [], "", {}, False, id="the others would have to be started for it"),
        pytest.param([LLAMA, PHI], [], "", {}, True, id="another is ready and free"),
        pytest.param([LLAMA, PHI], [PHI], "", {}, False, id="another is ready and busy"),
        pytest.param([LLAMA, PHI], [PHI], "fails", {}, True, id="another is busy, and has not failed since"),
        pytest.param([LLAMA, PHI], [], "", {"fallback": "off"}, False, id="it wants no other"),
        pytest.param([LLAMA], [], "opens", {}, True, id="here nobody is served for now, and another can be started"),
        pytest.param([LLAMA], [], "opens", {"fallback": "off"}, False, id="nobody is served, and it wants no other"),
    ],
)
def test_a_failure_sends_away_only_whom_it_helps(ready, taken, happens, headers, leaves):
    @in_virtual_time
    async def run(clock: Any) -> None:
        house = a_house(clock)
        gateway = a_gateway(house)
        async with house.open():
            for place in ready:
                await up(house, place)
            for place in (LLAMA, *taken):
                assert gateway._queues.take(place, expected_seconds=1.0)
            errand = an_errand(house, LLAMA, **headers)
            given = await gateway._choosing.given(errand)
            assert given is not None
            turn = asyncio.create_task(gateway._choosing.slot(errand, given))
            await settle()
            if happens == "opens":
                break_open(gateway, LLAMA)
            if happens == "fails":
                gateway._choosing._proofs.failed(LLAMA)
            gateway._queues.expel(LLAMA, "it said 500")
            await settle()

            assert leaves == turn.done()
            assert ([LLAMA] if leaves else []) == list(errand.lost)
            assert errand.queue_retry_seconds is None, "no queue was full"
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            await gateway.close()

    run()


@in_virtual_time
async def test_with_nowhere_to_go_nobody_is_refused_for_one_failure(clock):
    house = a_house(clock, places=(LLAMA,))
    gateway = a_gateway(house)
    async with house.open():
        await up(house, LLAMA)
        assert gateway._queues.take(LLAMA, expected_seconds=1.0)
        asked = [ask(gateway, LLAMA)[0] for _ in range(7)]
        await settle()

        gateway._queues.expel(LLAMA, "it said 500")
        await settle()

        (line,) = gateway.lines()
        assert (7, []) == (line.waiting["normal"], ends(house))
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await gateway.close()


@in_virtual_time
async def test_whom_a_breaker_turns_away_in_line_comes_back_for_the_soonest_probe(clock):
    house = a_house(clock, places=(LLAMA,))
    gateway = a_gateway(house)
    async with house.open():
        await up(house, LLAMA)
        slot = gateway._queues.take(LLAMA, expected_seconds=1.0)
        asked, listener = ask(gateway, LLAMA)
        await settle()
        break_open(gateway, LLAMA)
        await asyncio.sleep(8.0)
        slot.release()
        await asked

        assert (503, b"22") == (listener.status, listener.headers[b"retry-after"])
        assert "no_usable_model" == error_of(listener)["code"], listener.body
        assert ["shed"] == ends(house)
        await gateway.close()


# ── too much waits ────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_full_queue_is_one_decision_and_not_one_that_found_nothing_as_well(clock):
    house = a_house(clock)
    house.settings = replace(house.settings, gateway=GatewaySettings(queue=QueueSettings(normal_entries=0)))
    gateway = a_gateway(house)
    async with house.open():
        await up(house, LLAMA)
        assert gateway._queues.take(LLAMA, expected_seconds=1.0)
        asked, listener = ask(gateway, LLAMA, fallback="off")
        await asked

        assert (503, "queue_full") == (listener.status, error_of(listener)["code"])
        assert ["chosen"] == [event.outcome for event in house.events if isinstance(event, Decided)]
        await gateway.close()


@pytest.mark.parametrize("priority", ["normal", "batch"])
def test_bodies_that_wait_for_a_load_or_a_group_are_counted_too(priority):
    @in_virtual_time
    async def run(clock: Any) -> None:
        house = a_house(clock, engine={"load_seconds": 100.0})
        most = QueueSettings(size_bytes=2 * len(arrived_for(LLAMA).body))
        house.settings = replace(house.settings, gateway=GatewaySettings(queue=most))
        gateway = a_gateway(house)
        async with house.open():
            waiting = [ask(gateway, place, priority=priority)[0] for place in (LLAMA, QWEN)]
            await asyncio.sleep(5.0)
            assert [False, False] == [task.done() for task in waiting]
            asked, listener = ask(gateway, PHI)
            await asked

            again_seconds = int(listener.headers[b"retry-after"])
            assert (503, True) == (listener.status, 1 <= again_seconds <= 120)
            told = error_of(listener)
            assert ("queue_full", True) == (told["code"], "gateway.queue.size" in told["message"]), told
            assert (["shed"], S.STOPPED) == (ends(house), house.state(PHI))
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert 0 == gateway._bodies.waiting_bytes
            await gateway.close()

    run()


# ── the daemon leaves ─────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_leaving_whoever_waits_is_told_so_at_once_and_no_other_model_is_started(clock):
    house = a_house(clock, engine={"load_seconds": 100.0})
    gateway = a_gateway(house)
    async with house.open():
        await up(house, PHI)
        assert gateway._queues.take(PHI, expected_seconds=1.0)
        asked = [
            ask(gateway, LLAMA, priority="batch"),  # for its load
            ask(gateway, QWEN, priority="batch"),  # for the end of that group
            ask(gateway, PHI),  # for its turn
        ]
        await asyncio.sleep(5.0)
        began = clock.now_seconds()
        gateway.leave()
        house.controller.leave()
        await asyncio.gather(*(task for task, _ in asked))

        assert began == clock.now_seconds()
        for _, listener in asked:
            assert (503, b"2") == (listener.status, listener.headers[b"retry-after"]), listener.body
            assert "draining" == error_of(listener)["code"]
        assert ["drained"] * 3 == ends(house)
        assert (S.READY, S.STARTING, S.STOPPED) == tuple(house.state(place) for place in (PHI, LLAMA, QWEN))
        await gateway.close()
