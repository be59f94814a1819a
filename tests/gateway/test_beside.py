"""The turn of a second attempt, beside a first: at a half-open breaker it is the one probe, or it is not had."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from dispatcher.gateway.answering import Answering
from dispatcher.gateway.breakers import Breakers
from dispatcher.gateway.choosing import Choosing
from dispatcher.gateway.errand import Errand, Given
from dispatcher.gateway.proofs import Proofs
from dispatcher.gateway.queue import Queues
from dispatcher.vocabulary.decision import Selected
from dispatcher.vocabulary.relay import ENDPOINTS, Arrived
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire import surface
from tests.builders import LLAMA, PHI, a_fleet, a_lease, a_ready_view
from tests.decisions import a_chosen, a_decision, a_selected
from tests.virtual_time import in_virtual_time

CHAT = ENDPOINTS["/api/chat"]
BODY = b'{"model":"auto","messages":[],"stream":false}'


@dataclass
class Desk:
    """It always chooses LLAMA, for a request whose first attempt is at PHI."""

    clock: Any
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings, fleet = Settings(), a_fleet(a_ready_view(LLAMA), a_ready_view(PHI))
        self.breakers = Breakers(settings=lambda: settings, clock=self.clock, emit=lambda event: None)
        self.queues = Queues(
            settings=lambda: settings, clock=self.clock, slots=lambda place: 1, idle_since=lambda place, at: True
        )
        self.choosing = Choosing(
            select=self._select,
            recommend=lambda asked: a_decision(),
            end_lease=self.ended.append,
            fleet=lambda: fleet,
            queues=self.queues,
            breakers=self.breakers,
            proofs=Proofs(),
            settings=lambda: settings,
            clock=self.clock,
            leaving=lambda: False,
        )
        self.errand = Errand(
            arrived=Arrived(endpoint=CHAT, headers=[], body=BODY, request_id="r-1"),
            told=surface.told(CHAT, BODY, surface.Wishes(asked=Asked())),
            named=None,
            answering=Answering(None, CHAT, "r-1", stream=False, heartbeat_seconds=60.0),  # type: ignore[arg-type]
            began_seconds=self.clock.now_seconds(),
            until_seconds=None,
        )
        first = a_selected(a_decision(a_chosen(PHI)))
        self.first = Given(selected=first, lease=a_lease(PHI), origin="http://127.0.0.1:1")

    async def _select(self, asked: Asked, **_: Any) -> Selected:
        return a_selected(a_decision(a_chosen(LLAMA)), lease=a_lease(LLAMA), endpoint="http://127.0.0.1:2")

    async def half_open(self) -> None:
        for _ in range(5):
            self.breakers.failed(LLAMA, "it said 500")
        await asyncio.sleep(30.1)


@in_virtual_time
async def test_while_it_waited_for_its_turn_another_became_the_probe(clock):
    desk = Desk(clock)
    slot = desk.queues.take(LLAMA, expected_seconds=1.0)
    assert slot is not None
    waits = asyncio.create_task(desk.choosing.beside(desk.errand, desk.first))
    await asyncio.sleep(0.1)
    await desk.half_open()
    desk.breakers.goes(LLAMA, clock.now_seconds() + 300.0)
    slot.release()

    assert await waits is None
    assert (["l-1"], 0) == (desk.ended, desk.queues.running(LLAMA))
    desk.breakers.close()


@in_virtual_time
async def test_its_turn_at_a_half_open_breaker_is_the_probe(clock):
    desk = Desk(clock)
    await desk.half_open()
    found = await desk.choosing.beside(desk.errand, desk.first)

    assert found is not None
    assert ("open", True) == (desk.breakers.seen(LLAMA).state, found[1].probe > 0)
    desk.breakers.says_nothing(LLAMA, found[1].probe)
    assert "half_open" == desk.breakers.seen(LLAMA).state
    desk.breakers.close()
