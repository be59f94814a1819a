"""What was promised to whom, and what an onlooker may hold against the dispatcher. It believes acknowledged answers,
the engine's record and the clock; of the dispatcher it reads the events, and only to check them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dispatcher.control.ledger import Ledger
from dispatcher.vocabulary.event import GONE, Acted, Leased, Turned
from dispatcher.vocabulary.fleet import HOLDING, FleetView, Lease, Place, PlaceView

SLACK_SECONDS = 1e-3
CRASHES = ("place_crashed", "oom_killed")
FOUND = "found running, and silent"  # how an end is told of what nobody here had begun
HARD_IS_KNOWN_SECONDS = 20.0  # memory was hard so lately that what is done now may be for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A lease that a caller was told of. until_seconds: by the daemon's clock, not before this may it end by time.

    kept_until_seconds: the same after a kill: what was acknowledged as durable; None: granted from memory only.
    """

    lease: Lease
    told_at_seconds: float  # steady
    until_seconds: float
    kept_until_seconds: float | None


@dataclass
class Truth:
    """faults: what the dispatcher did wrong, in words. Everything else is how that is found."""

    faults: list[str] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    granted: Counter[str] = field(default_factory=Counter)  # lease id → events
    ended: Counter[str] = field(default_factory=Counter)
    acted: Counter[tuple[str, Place]] = field(default_factory=Counter)  # of the present process
    unreported: Counter[tuple[str, Place]] = field(default_factory=Counter)  # starts cut short by a stop by hand
    states: dict[Place, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)  # what the schedules came to
    hand_stops: dict[Place, float] = field(default_factory=dict)
    stop_decided: dict[Place, float] = field(default_factory=dict)  # a refused stop call is repeated
    gone: dict[Place, float] = field(default_factory=dict)
    renewed: set[Place] = field(default_factory=set)  # gone, and perhaps declared anew: known as stopped again
    oom_killed: set[Place] = field(default_factory=set)
    granted_before: frozenset[str] = frozenset()  # by earlier processes
    booted_at_seconds: float = 0.0

    def fault(self, words: str) -> None:
        self.faults.append(words)

    def new_process(self, now_seconds: float, clock_seconds: float) -> None:
        """kill -9 and start: what was not durable was never promised; a clock set back shortens what is left."""
        self.booted_at_seconds = now_seconds
        self.acted.clear()
        self.unreported.clear()
        self.states.clear()
        self.renewed.clear()
        self.granted_before = frozenset(self.granted)
        self.held = {
            lease_id: replace(one, until_seconds=until, kept_until_seconds=until)
            for lease_id, one in self.held.items()
            if one.kept_until_seconds is not None
            for until in [min(one.kept_until_seconds, clock_seconds + one.lease.seconds)]
        }
        for lease_id in self.granted:  # an end that was not written is told again
            self.ended.pop(lease_id, None)

    # ── events ──

    def check_turn(self, event: Turned, place: Place) -> None:
        before = self.states.get(place, "stopped")
        if event.before != before and place in self.renewed and event.before == "stopped":
            self.renewed.discard(place)
        elif event.before != before:
            self.fault(f"{place} turned from {event.before} to {event.after}, and it was last told as {before}")
        self.states[place] = "stopped" if event.after == GONE else event.after  # declared anew it begins so
        self.seen[f"turned {event.after}"] += 1

    def check_acted(self, event: Acted) -> None:
        verb = "start" if type(event.action).__name__ == "Start" else "stop"
        told_of_a_crash = event.seconds == 0.0 and event.error_type in CRASHES and verb == "start"
        if not told_of_a_crash and not event.because.startswith(FOUND):
            self.acted[verb, event.action.place] += 1
        self.seen[f"{verb} {'ok' if event.ok else event.error_type}"] += 1

    def check_leased(self, event: Leased, clock_seconds: float, why_not: str) -> None:
        """why_not: what the engine's record has against this cause of an end; "" when nothing."""
        lease = event.lease
        self.seen[f"lease {event.what} {event.cause}".strip()] += 1
        if event.what == "granted":
            self.granted[lease.id] += 1
            if self.granted[lease.id] > 1:
                self.fault(f"{lease.id} was granted twice")
        if event.what != "ended":
            return
        self.ended[lease.id] += 1
        if self.ended[lease.id] > 1:
            self.fault(f"{lease.id} ended twice, now as {event.cause}")
        held = self.held.pop(lease.id, None)
        if held is None:
            return
        if event.cause == "expired" and clock_seconds < held.until_seconds - SLACK_SECONDS:
            self.fault(f"{lease.id} on {lease.place} expired {held.until_seconds - clock_seconds:.1f} s early")
        if event.cause in ("outcome", "returned"):
            self.fault(f"{lease.id} on {lease.place} ended as {event.cause}, and its caller gave nothing back")
        if why_not:
            self.fault(f"{lease.id} on {lease.place} ended as {event.cause}, and {why_not}")

    def live_on(self, place: Place, clock_seconds: float) -> list[Held]:
        return [
            one
            for one in self.held.values()
            if one.lease.place == place and one.until_seconds > clock_seconds + SLACK_SECONDS
        ]


def counted_bytes(views: tuple[PlaceView, ...]) -> int:
    """The claim rule of the ledger, worked out from what is shown: a grantee and its victims are the larger of two."""
    by_place = {view.place: view for view in views}
    total = 0
    for view in views:
        if view.taken_by is None or view.taken_by not in by_place or not by_place[view.taken_by].budget_bytes:
            victims = sum(other.budget_bytes for other in views if other.taken_by == view.place)
            total += max(view.budget_bytes, victims)
    return total


def booked_bytes(ledger: Ledger) -> int:
    """The same, from the ledger's own lines, while a promise is being made."""
    lines: Mapping[Place, tuple[int, Place | None]] = {
        place: (line.budget_bytes, line.taken_by) for place, line in ledger.holdings.items()
    }
    total = ledger.foreign_bytes
    for place, (budget, taken_by) in lines.items():
        if taken_by is None or taken_by not in lines:
            total += max(budget, sum(other for other, taker in lines.values() if taker == place))
    return total


def miscounted(fleet: FleetView, running: frozenset[Place]) -> list[str]:
    """Places that count when they should not, or do not when they should. running: as the engine truly is."""
    told = []
    for view in fleet.places:
        counts = view.state in HOLDING or view.leases > 0
        if counts and not view.budget_bytes:
            told.append(f"{view.place} is {view.state.value} with {view.leases} leases and counts nothing")
        if not counts and view.budget_bytes and view.place not in running:
            told.append(f"{view.place} is {view.state.value}, nobody wants it, and it counts {view.budget_bytes}")
    places = [view.place for view in fleet.places]
    told += [f"{place} is there twice" for place in set(places) if places.count(place) > 1]
    return told
