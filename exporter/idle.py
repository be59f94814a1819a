"""Memory held by models nobody was using, integrated over time. Leases come and go with every request, so between two
looks at the fleet they are followed by themselves; whatever else makes a place idle is seen at the next look."""

from __future__ import annotations

from collections.abc import Callable

from dispatcher.clock import Clock
from dispatcher.vocabulary.event import Leased
from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState, PlaceView


class IdleMemory:
    """Mutable. spent: told of the byte-seconds since the last time it was told."""

    def __init__(self, clock: Clock, fleet: Callable[[], FleetView], spent: Callable[[float], None]) -> None:
        self._clock, self._fleet, self._spent = clock, fleet, spent
        self._leases: dict[Place, int] = {}  # those this process saw granted
        self._budgets: dict[Place, int] = {}  # of ready places, as last looked at
        self._idle: set[Place] = set()
        self._idle_bytes = 0
        self._since_seconds = clock.now_seconds()

    def look(self) -> None:
        """What was idle until now was so since the last time; who is idle is asked anew."""
        self._integrate()
        ready = [view for view in self._fleet().places if view.state is PlaceState.READY]
        self._budgets = {view.place: view.budget_bytes for view in ready}
        self._idle = {view.place for view in ready if _unused(view)}
        self._sum_up()

    def leased(self, event: Leased) -> None:
        """Only the first lease of a place and the end of its last change who is idle."""
        place = event.lease.place
        before = self._leases.get(place, 0)
        after = max(0, before + (1 if event.what == "granted" else -1))
        if after:
            self._leases[place] = after
        else:
            self._leases.pop(place, None)
        if (before == 0) == (after == 0):
            return
        if place not in self._budgets:  # it became ready since
            self.look()
            return
        self._integrate()
        if after:
            self._idle.discard(place)
        else:
            self._idle.add(place)
        self._sum_up()

    def _integrate(self) -> None:
        now_seconds = self._clock.now_seconds()
        self._spent(self._idle_bytes * (now_seconds - self._since_seconds))
        self._since_seconds = now_seconds

    def _sum_up(self) -> None:
        self._idle_bytes = sum(self._budgets[place] for place in self._idle)


def _unused(view: PlaceView) -> bool:
    return not view.busy and view.leases == 0 and view.in_flight == 0
