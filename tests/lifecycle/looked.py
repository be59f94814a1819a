"""A tenancy that is told what an engine says, look by look."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.clock import ManualClock
from dispatcher.lifecycle.looking import Looking
from dispatcher.lifecycle.tenancy import Tenancy
from dispatcher.vocabulary.event import Event, Leased
from dispatcher.vocabulary.fleet import NOT_BREAKING, Lease, Place, PlaceSeen, PlaceState
from dispatcher.vocabulary.settings import GIB, Settings
from tests.builders import LLAMA, NOW, a_seen, a_snapshot, some_profiles

S = PlaceState
UP = {"running": True, "answers": True, "loaded": True, "loaded_num_ctx": 4096}
UNLOADED = {"running": True, "answers": True, "loaded": False}


class Looked:
    """A tenancy that is told what the engine says, look by look; 7 GiB of room: llama and qwen do not fit together."""

    def __init__(self, room_gib: float | None = 7.0) -> None:
        self.clock = ManualClock(NOW)
        self.events: list[Event] = []
        self.at_work: set[Place] = set()
        self.tenancy = Tenancy(
            settings=Settings,
            clock=self.clock,
            snapshot=a_snapshot,
            profiles=some_profiles,
            emit=self.events.append,
            in_flight=lambda place: 0,
            breaker=lambda place: NOT_BREAKING,
            jitter=lambda: 1.0,
            wake=lambda: None,
            notify=lambda: None,
        )
        self.tenancy.failing = None
        self.room(room_gib)
        self.looking = Looking(self.tenancy, busy=self.at_work.__contains__, emit=self.events.append)

    def room(self, gib: float | None) -> None:
        self.tenancy.ledger = replace(self.tenancy.ledger, room_bytes=None if gib is None else round(gib * GIB))

    def look(self, *seen: PlaceSeen, began_before_seconds: float = 0.0) -> None:
        self.clock.advance(1.0)
        now = self.clock.now_seconds()
        self.looking.look(seen, now - began_before_seconds, now)

    def restored(self, *leases: Lease, seen: tuple[PlaceSeen, ...]) -> Looked:
        self.looking.restore(leases)
        self.look(*seen)
        return self

    def state(self, place: Place) -> PlaceState:
        return self.tenancy.residents[place].state

    def num_ctx(self, place: Place) -> int | None:
        return self.tenancy.residents[place].num_ctx

    def reserved_gib(self) -> float:
        return round(self.tenancy.view().reserved_bytes / GIB, 1)

    def ends(self) -> dict[str, str]:
        return {
            event.lease.id: event.cause for event in self.events if isinstance(event, Leased) and event.what == "ended"
        }


def ready_house() -> Looked:
    """llama is up and known."""
    house = Looked()
    house.look(a_seen(LLAMA, **UP))
    assert S.READY is house.state(LLAMA)
    return house
