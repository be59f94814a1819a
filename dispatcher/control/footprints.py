"""What models were seen to occupy, and what a kill for want of memory says of it: the peaks of `Profiles`. Dry."""

from __future__ import annotations

from collections.abc import Iterable

from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import Measured, blended, measured_share
from dispatcher.vocabulary.signal import Reading, Snapshot

PEAK_DECAY_RATIO = 0.001  # of the distance, per lower reading: at one per 5 s half in an hour
PEAK_MAX_N = 100
OOM_FACTOR = 1.25
OOM_MIN_N = 5  # its word weighs at least half, also when it is the first
_ONES_OWN = "docker:"  # such a server is a container of one model


def peak_after(known: Measured | None, size_bytes: int) -> Measured:
    """A higher reading counts at once, a lower one lowers the peak slowly."""
    peak = float(size_bytes)
    if known is not None and known.value is not None and known.value > peak:
        peak = known.value - (known.value - peak) * PEAK_DECAY_RATIO
    return Measured(value=peak, n=1 if known is None else min(known.n + 1, PEAK_MAX_N))


def peak_after_kill(known: Measured, predicted_bytes: int, most_bytes: float) -> Measured:
    """So that the footprint believed until now, blend and all, is multiplied by 1.25."""
    believed = blended(known, predicted_bytes)
    n = max(known.n, OOM_MIN_N)
    share = measured_share(n)
    peak = min(most_bytes, (OOM_FACTOR * believed - (1 - share) * predicted_bytes) / share)
    return Measured(value=peak, n=n)


def occupied_bytes(view: PlaceView, snapshot: Snapshot) -> int | None:
    """What a ready, used model holds: the larger of what the engine told and rss + mapped files as cAdvisor saw them
    in this run. None: nobody saw it, or it has not worked yet and has touched little of what it will."""
    if view.state is not PlaceState.READY or view.used_at_seconds <= (view.ready_at_seconds or 0.0):
        return None
    told = [view.measured_bytes] if view.measured_bytes else []
    rss = container_reading(view, "container_memory_rss_bytes", snapshot)
    mapped = container_reading(view, "container_mapped_file_bytes", snapshot)
    if rss.value is not None and mapped.value is not None:
        since_seconds = view.ready_at_seconds or 0.0
        if min(rss.at_seconds, mapped.at_seconds) >= since_seconds:
            told.append(int(rss.value + mapped.value))
    return max(told, default=None)


def container_reading(view: PlaceView, signal: str, snapshot: Snapshot) -> Reading[float]:
    """Of the place's own container; NEVER_SEEN for a server that several models share."""
    server = view.place.server
    return snapshot.reading(signal, server.removeprefix(_ONES_OWN) if server.startswith(_ONES_OWN) else server)


class Kills:
    """Kills inside containers that went on running: a model's runner dies and its server lives, so that Docker never
    says it. cAdvisor's counter of them per container is all there is. Mutable; one per daemon."""

    def __init__(self) -> None:
        self._seen: dict[Place, Reading[float]] = {}

    def new(self, fleet: FleetView, snapshot: Snapshot) -> Iterable[PlaceView]:
        """Places whose counter has grown while they were ready the whole time. One that died, was started or loaded in
        between told of its kill itself, and would be punished twice."""
        found = []
        for view in fleet.places:
            told = container_reading(view, "container_oom_events", snapshot)
            if told.value is None:
                continue
            before = self._seen.get(view.place)
            self._seen[view.place] = told
            grown = before is not None and before.value is not None and told.value > before.value
            if grown and before is not None and _ready_since(view, before.at_seconds):
                found.append(view)
        here = {view.place for view in fleet.places}
        self._seen = {place: told for place, told in self._seen.items() if place in here}
        return found


def _ready_since(view: PlaceView, at_seconds: float) -> bool:
    return view.state is PlaceState.READY and (view.ready_at_seconds or 0.0) <= at_seconds
