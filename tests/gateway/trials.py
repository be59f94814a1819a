"""What tests of one attempt need: a client that reads or does not, an errand, a place at a real server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from dispatcher.clock import Clock, SystemClock
from dispatcher.control.deadlines import Deadlines
from dispatcher.gateway.answering import Answering
from dispatcher.gateway.breakers import Breakers
from dispatcher.gateway.errand import Errand, Given
from dispatcher.gateway.proofs import Proofs
from dispatcher.gateway.queue import Slot
from dispatcher.gateway.trying import Trying
from dispatcher.gateway.upstream import Upstreams
from dispatcher.vocabulary.decision import Candidate, Decision, Rejection, Rule, Selected
from dispatcher.vocabulary.event import Event
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.gateway_settings import GatewaySettings
from dispatcher.vocabulary.relay import ENDPOINTS, Arrived, Headers
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire import surface
from tests.builders import NOW, PHI, a_lease, a_request

V1 = "/v1/chat/completions"
API = "/api/chat"


class Reader:
    """The client's side. reads: as uvicorn has it, a piece is written once those before it were taken; one that does
    not read lets the first piece through and no other."""

    def __init__(self, *, reads: bool = True) -> None:
        self.left = False
        self.status: int | None = None
        self.told: Headers = []
        self.body = b""
        self.ends: list[str] = []  # "finished", "answered", "cut", "cut at once"
        self.takes = asyncio.Event()
        self._reads = reads
        self.takes.set()

    @property
    def headers(self) -> dict[bytes, bytes]:
        assert len({name for name, _ in self.told}) == len(self.told), f"said twice: {self.told}"
        return dict(self.told)

    async def start(self, status: int, headers: Headers) -> None:
        await self.takes.wait()
        assert self.status is None, "headers twice"
        self.status, self.told = status, headers

    async def write(self, piece: bytes) -> None:
        await self.takes.wait()
        self.body += piece
        if not self._reads:
            self.takes.clear()

    async def finish(self) -> None:
        await self.takes.wait()
        self.ends.append("finished")

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        await self.start(status, headers)
        self.body = body
        self.ends.append("answered")

    async def cut(self, *, at_once: bool = False) -> None:
        self.ends.append("cut at once" if at_once else "cut")


def an_answering(reader: Reader, path: str = API, *, stream: bool = True) -> Answering:
    return Answering(reader, ENDPOINTS[path], "r-1", stream=stream, heartbeat_seconds=15.0)


def an_errand(
    reader: Reader, path: str = V1, *, words: str = "hi", model: str = PHI.model, stream: bool = False, **headers: str
) -> Errand:
    """headers: of the dispatcher's, without their prefix."""
    asked: dict[str, Any] = {"model": model, "stream": stream, "messages": [{"role": "user", "content": words}]}
    given = [(f"x-dispatcher-{name}".encode(), value.encode()) for name, value in headers.items()]
    arrived = Arrived(endpoint=ENDPOINTS[path], headers=given, body=json.dumps(asked).encode(), request_id="r-1")
    return Errand(
        arrived=arrived,
        told=surface.told(arrived.endpoint, arrived.body, surface.wishes(given)),
        named=model,
        answering=an_answering(reader, path, stream=stream),
        began_seconds=NOW,
        until_seconds=None,
    )


def a_decision(decision_id: str = "d-1", *rejected: tuple[Place, Rule]) -> Decision:
    """Of which only matters what it is called, and why it chose nothing."""
    return Decision(
        request=a_request(id=decision_id),
        at_seconds=NOW,
        chosen=None,
        candidates=tuple(
            Candidate(
                place=place,
                verdict="rejected",
                state=PlaceState.STOPPED,
                endpoint=None,
                num_ctx=4096,
                rejection=Rejection(place=place, rule=rule, template="it will not do"),
            )
            for place, rule in rejected
        ),
    )


def a_given(origin: str, place: Place = PHI) -> Given:
    decision = a_decision()
    return Given(selected=Selected(decision=decision), lease=a_lease(place), origin=origin)


def a_slot(place: Place = PHI) -> Slot:
    return Slot(place, expected_seconds=1.0, at_seconds=NOW, give_back=lambda slot, until_seconds: None)


@dataclass(kw_only=True)
class Trial:
    """A Trying with everything real around it. ready_elsewhere: as choosing would say it."""

    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    clock: Clock = field(default_factory=SystemClock)
    ready_elsewhere: bool = False
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = Settings(gateway=self.gateway)
        self.upstreams = Upstreams()
        self.breakers = Breakers(settings=lambda: settings, clock=self.clock, emit=self.events.append)
        self.trying = Trying(
            upstreams=self.upstreams,
            deadlines=Deadlines(),
            breakers=self.breakers,
            proofs=Proofs(),
            expel=lambda place, why: None,
            elsewhere=lambda errand, given: self.ready_elsewhere,
            settings=lambda: settings,
            clock=self.clock,
            emit=self.events.append,
            jitter=lambda: 0.0,
        )

    async def fails(self, errand: Errand, given: Given) -> bool:
        """One attempt, which fails; whether there is another."""
        errand.given, errand.decision = given, given.decision
        ended = await self.trying.attempt(errand, given, a_slot(given.place), cached=False)
        assert ended.cause is not None
        return await self.trying.goes_on(errand, given, ended.cause)

    async def close(self) -> None:
        self.breakers.close()
        await self.upstreams.close()

    def told(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]
