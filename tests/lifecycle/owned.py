"""A tenancy of its own, without a loop: time moves when told to, and the engine is what a test says it saw."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.clock import ManualClock
from dispatcher.lifecycle.resident import Resident
from dispatcher.lifecycle.tenancy import Tenancy
from dispatcher.vocabulary.event import Event, Leased
from dispatcher.vocabulary.fleet import NOT_BREAKING, Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import GIB, LifecycleSettings, Settings
from tests.builders import LLAMA, NOW, PHI, QWEN, a_seen, a_snapshot, some_profiles


class Owned:
    """A tenancy of three stopped places in 8 GiB less 1 of reserve: llama and qwen together do not fit."""

    def __init__(self, room_gib: float = 7.0, profiles: Profiles | None = None, **rules) -> None:
        self.clock = ManualClock(NOW)
        self.events: list[Event] = []
        self.in_flight: dict[Place, int] = {}
        self.woken = 0
        self.notified = 0
        self.settings = replace(Settings(), lifecycle=LifecycleSettings(**rules))
        self.tenancy = Tenancy(
            settings=lambda: self.settings,
            clock=self.clock,
            snapshot=a_snapshot,
            profiles=lambda: profiles or some_profiles(),
            emit=self.events.append,
            in_flight=lambda place: self.in_flight.get(place, 0),
            breaker=lambda place: NOT_BREAKING,
            jitter=lambda: 1.0,
            wake=self._wake,
            notify=self._notify,
        )
        self.tenancy.failing = None
        self.tenancy.total_bytes = (room_gib + 1) * GIB
        self.tenancy.ledger = replace(self.tenancy.ledger, room_bytes=round(room_gib * GIB))
        for place in (PHI, LLAMA, QWEN):
            self.tenancy.residents[place] = Resident(seen=a_seen(place))

    def _wake(self) -> None:
        self.woken += 1

    def _notify(self) -> None:
        self.notified += 1

    def reserve(self, place: Place, *evicts: Place, num_ctx: int = 4096, seconds: float = 60.0, by: str = "d-1"):
        return self.tenancy.reserve(place=place, num_ctx=num_ctx, evicts=evicts, decision_id=by, seconds=seconds)

    def up(self, place: Place, *, dwells: bool = False, num_ctx: int = 4096) -> None:
        """Started by hand and loaded."""
        assert None is self.tenancy.take(place, num_ctx, (), "asked")
        seen = a_seen(place, running=True, answers=True, loaded=True, loaded_num_ctx=num_ctx)
        self.tenancy.residents[place] = replace(self.tenancy.residents[place], seen=seen)
        self.tenancy.ready(place, 4.0)
        if not dwells:
            self.clock.advance(30.0)
            self.tenancy.changed()

    def state(self, place: Place) -> PlaceState:
        return self.tenancy.residents[place].state

    def view(self, place: Place):
        return self.tenancy.view_of(place)

    def reserved_gib(self) -> float:
        return round(self.tenancy.view().reserved_bytes / GIB, 1)

    def told(self, what: str) -> list[str]:
        return [event.cause for event in self.events if isinstance(event, Leased) and event.what == what]
