"""The memory ledger: which place counts with how much, and whether one more promise fits. Dry; owned by the controller.

Each place counts once. A grant that evicts takes over its victims' budgets: victims and grantee together count as the
larger of the two sums, so that no third promise is made on memory that is merely on its way to being free.
Measured memory never grants anything; it can only veto (`free_bytes`), after the ledger has corrected samples that are
older than our own last start or stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState, PlaceView
from dispatcher.vocabulary.settings import GIB, LifecycleSettings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.vocabulary.words import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One place's share. taken_by: the grantee that takes it over once this place is seen stopped."""

    budget_bytes: int
    taken_by: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """room_bytes: capacity − reserve; None when nobody knows the capacity, and then nothing more is granted.

    foreign_bytes: what others hold in a shared engine; it counts like a holding of ours.
    """

    room_bytes: int | None = None
    foreign_bytes: int = 0
    holdings: Mapping[Place, Holding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A grant refused. free_bytes None: the capacity is unknown."""

    need_bytes: int
    free_bytes: int | None

    @property
    def words(self) -> str:
        if self.free_bytes is None:
            return "the ledger does not know the host's memory"
        return f"the ledger refused: needs {Bytes(self.need_bytes)}, {Bytes(self.free_bytes)} not promised yet"


def room_bytes(total_bytes: float | None, lifecycle: LifecycleSettings) -> int | None:
    """capacity − reserve, from the settings or the host's total (numbers.md: reserve max(5 %, 1 GiB))."""
    capacity_bytes = lifecycle.capacity_bytes if lifecycle.capacity_bytes is not None else total_bytes
    if capacity_bytes is None:
        return None
    return int(capacity_bytes) - reserve_bytes(capacity_bytes, lifecycle)


def reserve_bytes(capacity_bytes: float, lifecycle: LifecycleSettings) -> int:
    if lifecycle.reserve_bytes is not None:
        return lifecycle.reserve_bytes
    return max(int(capacity_bytes * 0.05), GIB)


def reserved_bytes(ledger: Ledger) -> int:
    """Sum over the ledger, with each grantee and its victims as the larger of the two."""
    victims_bytes: dict[Place, int] = {}
    for holding in ledger.holdings.values():
        if holding.taken_by is not None:
            victims_bytes[holding.taken_by] = victims_bytes.get(holding.taken_by, 0) + holding.budget_bytes
    total_bytes = ledger.foreign_bytes
    for place, holding in ledger.holdings.items():
        if holding.taken_by is None or holding.taken_by not in ledger.holdings:
            total_bytes += max(holding.budget_bytes, victims_bytes.get(place, 0))
    return total_bytes


def granted(ledger: Ledger, place: Place, budget_bytes: int, victims: Iterable[Place]) -> Ledger | Shortage:
    """The ledger with `place` holding `budget_bytes` and its victims on their way out, or why that does not fit.

    A victim that another grant has already taken, or that itself waits for victims, is not given twice: Shortage.
    A place that reloads is its own victim: it is counted with the larger of what it holds and what it will hold.
    """
    given = tuple(victims)
    waiting = {holding.taken_by for holding in ledger.holdings.values()}
    before = ledger.holdings.get(place)
    own_bytes = max(budget_bytes, before.budget_bytes) if before else budget_bytes
    holdings = {**ledger.holdings, place: Holding(budget_bytes=own_bytes)}
    for victim in given:
        held = ledger.holdings.get(victim)
        if held is None or victim == place:
            continue
        if held.taken_by not in (None, place) or victim in waiting:
            return Shortage(need_bytes=budget_bytes, free_bytes=0)
        holdings[victim] = replace(held, taken_by=place)
    after = replace(ledger, holdings=holdings)
    if ledger.room_bytes is None:
        return Shortage(need_bytes=budget_bytes, free_bytes=None)
    if reserved_bytes(after) > ledger.room_bytes:
        return Shortage(need_bytes=budget_bytes, free_bytes=ledger.room_bytes - reserved_bytes(ledger))
    return after


def granted_blind(ledger: Ledger, place: Place, budget_bytes: int, victims: Iterable[Place]) -> Ledger | Shortage:
    """As `granted`; but where nobody ever knew the capacity and nothing else is held, the one promise there has to be
    is made on trust: what does not fit is killed by its own limit, and waits for its backoff."""
    after = granted(ledger, place, budget_bytes, victims)
    if isinstance(after, Shortage) and after.free_bytes is None and not ledger.holdings.keys() - {place}:
        return adopted(ledger, place, budget_bytes)
    return after


def adopted(ledger: Ledger, place: Place, budget_bytes: int) -> Ledger:
    """The ledger with a place that is simply there: what runs counts, whether it was promised or not."""
    held = ledger.holdings.get(place)
    return replace(
        ledger,
        holdings={
            **ledger.holdings,
            place: Holding(budget_bytes=budget_bytes, taken_by=held.taken_by if held else None),
        },
    )


def released(ledger: Ledger, place: Place) -> Ledger:
    """The ledger without `place`; its victims, if some are still stopping, count for themselves again."""
    holdings = {
        other: replace(holding, taken_by=None) if holding.taken_by == place else holding
        for other, holding in ledger.holdings.items()
        if other != place
    }
    return replace(ledger, holdings=holdings)


def victims_of(ledger: Ledger, place: Place) -> tuple[Place, ...]:
    return tuple(sorted(other for other, holding in ledger.holdings.items() if holding.taken_by == place))


def free_bytes(
    fleet: FleetView, snapshot: Snapshot, now_seconds: float, *, evicting: frozenset[Place] = frozenset()
) -> int | None:
    """The smaller of what the ledger and what measurement leave, plus the budgets of what would be stopped.

    None: the capacity or the measurement is unknown. May be negative. `now_seconds` is part of the signature so that
    a caller cannot mix views of two moments; the snapshot's own age is judged by control.trust.
    """
    available = snapshot.reading("host_memory_available_bytes").value
    if fleet.capacity_bytes is None or available is None or not isfinite(available):
        return None
    by_ledger = fleet.capacity_bytes - fleet.reserve_bytes - fleet.reserved_bytes
    by_measure = available + uncounted_bytes(fleet, snapshot) - fleet.reserve_bytes
    freed = sum(view.budget_bytes for view in fleet.places if view.place in evicting)
    return int(min(by_ledger, by_measure)) + freed


def uncounted_bytes(fleet: FleetView, snapshot: Snapshot) -> int:
    """What the memory sample does not know yet of our own starts (negative) and stops (positive)."""
    sampled_at = snapshot.reading("host_memory_available_bytes").at_seconds
    correction = 0
    for view in fleet.places:
        if view.budget_bytes and not _settled(view, sampled_at):
            correction -= _still_to_come_bytes(view, fleet, sampled_at)
        if view.stopped_at_seconds is not None and _held_then(view, sampled_at):
            correction += view.released_bytes
    return correction


def _held_then(view: PlaceView, sampled_at_seconds: float) -> bool:
    """Whether what its last end gave back is missing from the sample: it held that by then, and not only afterwards."""
    return view.released_since_seconds <= sampled_at_seconds < (view.stopped_at_seconds or 0.0)


def _settled(view: PlaceView, sampled_at_seconds: float) -> bool:
    """Its memory is in the sample: ready since before it, or on its way out (and then still there)."""
    if view.state in (PlaceState.STOPPING, PlaceState.DRAINING, PlaceState.STUCK):
        return True
    return view.state is PlaceState.READY and (view.ready_at_seconds or 0.0) <= sampled_at_seconds


def _still_to_come_bytes(view: PlaceView, fleet: FleetView, sampled_at_seconds: float) -> int:
    """Of its budget, what the sample does not hold yet and what its victims will not have freed for it.

    What it was measured to hold is in the sample only if it ran by then: before a reload, or started since before.
    """
    takes_over = sum(other.budget_bytes for other in fleet.places if other.taken_by == view.place)
    started_at = view.started_at_seconds  # None: found running, nobody here started it
    ran_by_then = started_at is None or min(started_at, view.ready_at_seconds or started_at) <= sampled_at_seconds
    here_already = min(view.measured_bytes or 0, view.budget_bytes) if ran_by_then else 0
    return max(0, view.budget_bytes - here_already - takes_over)


def free_video_bytes(fleet: FleetView, snapshot: Snapshot) -> int | None:
    """Free video memory as measured, corrected by our own starts and stops since; nothing evicted. None: no GPU that
    says so. May be negative."""
    free = snapshot.reading("gpu_memory_free_bytes")
    if free.value is None or not isfinite(free.value):
        return None
    correction = 0
    for view in fleet.places:
        correction -= _video_still_to_come_bytes(view, fleet, free.at_seconds)
        if view.released_since_seconds and view.stopped_at_seconds is not None and _held_then(view, free.at_seconds):
            correction += view.video_bytes or 0
    return int(free.value) + correction


def _video_still_to_come_bytes(view: PlaceView, fleet: FleetView, sampled_at_seconds: float) -> int:
    """Of what the model held when it was last loaded, all that a sample from before it was loaded this time misses,
    less what its victims will have freed for it by then. How much of a load had arrived when sampled, nobody tells."""
    if view.state not in (PlaceState.STARTING, PlaceState.READY) or view.started_at_seconds is None:
        return 0
    if not view.video_bytes or (view.ready_at_seconds is not None and view.ready_at_seconds <= sampled_at_seconds):
        return 0
    takes_over = sum(other.video_bytes or 0 for other in fleet.places if other.taken_by == view.place)
    return max(0, view.video_bytes - takes_over)
