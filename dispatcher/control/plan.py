"""What to do next, given what is: the fleet view in, actions out. Level-triggered: it compares, it remembers nothing.

Called at every reconcile and after every turn. Whether an action is already under way is the controller's to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from dispatcher.control.latches import HARD_TOTAL_RATIO
from dispatcher.vocabulary.action import BLIND, Action, Start, Stop
from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX
from dispatcher.vocabulary.settings import LifecycleSettings, PolicySettings
from dispatcher.vocabulary.signal import Freshness, Snapshot

MIN_GAPS = 5  # below so many idle gaps the ski-rental prior decides


def plan(fleet: FleetView, snapshot: Snapshot, now_seconds: float, policy: PolicySettings) -> tuple[Action, ...]:
    """Starts whose room is free, stops that were promised, idle places whose time is over, and servers that hang.

    Nothing leased, in flight, busy, pinned or in its dwell is stopped here; a failing engine is not acted on at all:
    what should be is remembered by the states themselves. Unknown freezes: stale stops nothing that is healthy unless
    memory is hard; blind brings back nothing that went down, either. What was begun or promised goes on.
    """
    if fleet.failing:
        return ()
    waiting_for_room = {view.taken_by for view in fleet.places if view.taken_by is not None}
    hung = _hung(fleet, snapshot.freshness, now_seconds)
    actions: list[Action] = []
    for view in fleet.places:
        action = hung.get(view.place) or _next(view, view.place in waiting_for_room, snapshot.freshness, now_seconds)
        if action is not None:
            actions.append(action)
    return (*actions, *_relief(fleet, snapshot, now_seconds, policy, {action.place for action in actions}))


def _next(view: PlaceView, waits_for_victims: bool, freshness: Freshness, now_seconds: float) -> Action | None:
    if view.state is PlaceState.STARTING and not waits_for_victims and now_seconds >= view.retry_at_seconds:
        cause = "leased" if view.leases else "asked"
        return Start(place=view.place, num_ctx=view.num_ctx or DEFAULT_NUM_CTX, cause=cause)
    comes_back = view.state is PlaceState.STOPPED and view.leases and now_seconds >= view.retry_at_seconds
    if comes_back and freshness is not Freshness.BLIND:
        return Start(place=view.place, num_ctx=view.num_ctx or DEFAULT_NUM_CTX, cause="leased")
    if view.state is PlaceState.STOPPING:
        return Stop(place=view.place, cause="evicted" if view.taken_by else "asked", detail=view.because)
    if view.state is PlaceState.STUCK:
        return Stop(place=view.place, cause="failed", detail=view.because)
    if view.state is PlaceState.DRAINING and not view.leases and not view.busy:
        return Stop(place=view.place, cause="asked", detail=view.because)
    if freshness is Freshness.FRESH and view.evictable(now_seconds) and view.claimed_by is None:
        idle_seconds = now_seconds - max(view.used_at_seconds, view.ready_at_seconds or 0.0)
        if idle_seconds >= view.keep_alive_seconds:
            detail = f"idle for {idle_seconds:.0f} s, kept for {view.keep_alive_seconds:.0f} s"
            return Stop(place=view.place, cause="idle", detail=detail)
    return None


def _hung(fleet: FleetView, freshness: Freshness, now_seconds: float) -> dict[Place, Stop]:
    """What is ready by its state and has been silent for as long as a load may take: stopped, so that it can be started
    again. Blind, where nothing that went down is brought back, only when nobody else answers either."""
    if freshness is Freshness.BLIND and any(view.state is PlaceState.READY and view.answers for view in fleet.places):
        return {}
    return {
        view.place: Stop(
            place=view.place, cause="failed", detail=f"silent for as long as a load may take: {view.because}"
        )
        for view in fleet.places
        if view.state is PlaceState.READY
        and not view.busy
        and view.hung_at_seconds is not None
        and now_seconds >= view.hung_at_seconds
    }


def first_light(
    fleet: FleetView, snapshot: Snapshot, now_seconds: float, profiles: Profiles
) -> tuple[Start] | tuple[()]:
    """When nobody knows the host's memory any more and nothing runs: the smallest model alone, so that somebody
    answers. Smallest: of the least footprint among those that could run at all; it, and no other, is tried again after
    its backoff. For how long nobody has known is the caller's to judge."""
    running = any(view.state not in (PlaceState.STOPPED, PlaceState.QUARANTINED) for view in fleet.places)
    if fleet.failing or fleet.draining or running or snapshot.freshness is not Freshness.BLIND:
        return ()
    needs = [
        (profiles.footprint_bytes(view.place.model, DEFAULT_NUM_CTX, view.parallel), view.retry_at_seconds, view)
        for view in fleet.places
        if view.installed is not False
        and (view.endpoint is not None or view.endpoint_later)
        and view.place.model in profiles.facts
    ]
    fits = [one for one in needs if one[2].limit_bytes is None or one[0] <= one[2].limit_bytes]
    if not fits:
        return ()
    smallest = min(fits, key=lambda one: (one[0], one[1], one[2].place))[2]
    if smallest.state is PlaceState.QUARANTINED or now_seconds < smallest.retry_at_seconds:
        return ()
    return (Start(place=smallest.place, num_ctx=DEFAULT_NUM_CTX, cause=BLIND),)


def _relief(
    fleet: FleetView, snapshot: Snapshot, now_seconds: float, policy: PolicySettings, acted: set[Place]
) -> Iterable[Stop]:
    """One idle place at a time while the host stalls on memory or holds more than the ledger allows."""
    fresh = snapshot.freshness is Freshness.FRESH
    room_bytes = None if fleet.capacity_bytes is None else fleet.capacity_bytes - fleet.reserve_bytes
    over = fresh and room_bytes is not None and fleet.reserved_bytes > room_bytes
    newest_stop = max((view.stopped_at_seconds or 0.0 for view in fleet.places), default=0.0)
    hard = _memory_is_hard(snapshot, policy, newest_stop)
    if not (over or hard or (fresh and _stalls(snapshot, policy, newest_stop))):
        return ()
    if any(view.state is PlaceState.STOPPING for view in fleet.places):
        return ()  # relief is on its way
    idle = [view for view in fleet.places if view.evictable(now_seconds) and view.place not in acted]
    ready = sum(view.state is PlaceState.READY for view in fleet.places)
    if not idle or (ready <= 1 and not hard):
        return ()  # never the last usable model, unless memory is hard
    goes = min(idle, key=lambda view: (view.keep_priority, view.used_at_seconds, view.place))
    why = "the host is at its hard memory limit" if hard else "memory pressure" if not over else "more runs than may"
    return (Stop(place=goes.place, cause="pressure", detail=why),)


def _memory_is_hard(snapshot: Snapshot, policy: PolicySettings, newest_stop_seconds: float) -> bool:
    """Latched, and still so by a reading that knows of our last stop: the latch alone outlives the pressure."""
    available = snapshot.reading("host_memory_available_bytes")
    if "memory_hard" not in snapshot.latches or available.value is None or available.at_seconds <= newest_stop_seconds:
        return False
    total_bytes = snapshot.reading("host_memory_total_bytes").value or 0.0  # unknown: the fixed limit alone
    return available.value < max(policy.memory_hard_bytes, HARD_TOTAL_RATIO * total_bytes)


def _stalls(snapshot: Snapshot, policy: PolicySettings, newest_stop_seconds: float) -> bool:
    """As _memory_is_hard, for PSI `full`."""
    full = snapshot.reading("host_memory_pressure_full_ratio")
    if "pressure_full" not in snapshot.latches or full.value is None or full.at_seconds <= newest_stop_seconds:
        return False
    return full.value > policy.memory_pressure_full_enter_ratio


def keep_alive_seconds(
    gaps_seconds: Sequence[float],
    footprint_bytes: int,
    room_bytes: int | None,
    load_seconds: float,
    rules: LifecycleSettings,
) -> float:
    """τ* = argmin E[min(gap, τ)] × rent + P(gap > τ) × load, over the seen idle gaps; load / rent until 5 of them.

    rent: the seconds of loading that one second of holding is worth, 0.05 × footprint / room (numbers.md).
    """
    if rules.idle_seconds is not None:
        return rules.idle_seconds
    if not room_bytes or room_bytes <= 0 or footprint_bytes <= 0:
        return rules.idle_max_seconds
    rent = rules.rent_ratio * footprint_bytes / room_bytes
    best = load_seconds / rent
    if len(gaps_seconds) >= MIN_GAPS:
        best = _cheapest(sorted(gaps_seconds), rent, load_seconds, rules)
    return min(rules.idle_max_seconds, max(rules.idle_min_seconds, best))


def _cheapest(gaps: list[float], rent: float, load_seconds: float, rules: LifecycleSettings) -> float:
    sums = (0.0, *accumulate(gaps))
    count = len(gaps)

    def cost(shorter: int, tau: float) -> float:
        return ((sums[shorter] + (count - shorter) * tau) * rent + (count - shorter) * load_seconds) / count

    least, most = rules.idle_min_seconds, rules.idle_max_seconds  # a gap beyond the cap is not worth half its rent
    floor = sum(gap <= least for gap in gaps)
    costs = [(cost(floor, least), least)]
    costs += [(cost(index + 1, gap), gap) for index, gap in enumerate(gaps) if least < gap <= most]
    return min(costs)[1]


def keep_priority(base: float, profiles: Profiles, place: Place, footprint_bytes: int, load_seconds: float) -> float:
    """Greedy-dual: L + freq × load seconds / footprint in GiB; freq is the model's decayed request rate per hour."""
    frequency = profiles.wanted_per_second.get(place.model, 0.0) * 3600
    return base + frequency * load_seconds / max(footprint_bytes / 1024**3, 0.001)
