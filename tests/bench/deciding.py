"""How long `decide` takes: for the chain of three, and for 2,000 candidates. No sockets, no clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dispatcher.policy.classify import classify
from dispatcher.policy.decide import decide
from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import Asked, Request
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, GIB, Settings
from dispatcher.vocabulary.signal import HOST, Freshness, Reading, Snapshot
from dispatcher.vocabulary.world import World

NOW_SECONDS = 1_700_000_000.0
PROMPT = (
    "Please review this function and explain why it fails when the list is empty: def mean(xs): return sum(xs)/len(xs)"
)


_READINGS = {
    "host_memory_available_bytes": 3.0 * GIB,
    "host_memory_total_bytes": 16.0 * GIB,
    "host_cpu_busy_ratio": 0.3,
    "host_cpu_steal_ratio": 0.0,
    "host_cpu_count": 4.0,
}


def world(places: int) -> World:
    """`places` places, a third of them ready, half of those leased; memory for some more and not for all."""
    profiles = Profiles(facts={model.name: model.facts() for model in DEFAULT_CHAIN})
    views = tuple(_view(index, profiles) for index in range(places))
    reserved_bytes = sum(view.budget_bytes for view in views)
    snapshot = Snapshot(
        number=1,
        at_seconds=NOW_SECONDS,
        readings={
            (name, HOST): Reading(value=value, at_seconds=NOW_SECONDS, source="prometheus")
            for name, value in _READINGS.items()
        },
        source="prometheus",
        freshness=Freshness.FRESH,
    )
    fleet = FleetView(
        places=views,
        capacity_bytes=reserved_bytes + 4 * GIB,
        reserve_bytes=GIB,
        reserved_bytes=reserved_bytes,
        provider="docker",
        host_cpu_count=4,
    )
    return World(snapshot=snapshot, fleet=fleet, profiles=profiles)


def _view(index: int, profiles: Profiles) -> PlaceView:
    model = DEFAULT_CHAIN[index % len(DEFAULT_CHAIN)].name
    ready = index % 3 == 1
    leases = index % 2 if ready else 0
    return PlaceView(
        place=Place(server=f"docker:place-{index}", model=model),
        state=PlaceState.READY if ready else PlaceState.STOPPED,
        since_seconds=NOW_SECONDS - 3600,
        endpoint=f"http://127.0.0.1:{20000 + index % 10000}",
        installed=True,
        num_ctx=4096 if ready else None,
        budget_bytes=profiles.footprint_bytes(model, 4096) if ready else 0,
        ready_at_seconds=NOW_SECONDS - 3000 if ready else None,
        leases=leases,
        busy=leases > 0,
    )


def durations_seconds(places: int, rounds: int, now: Callable[[], float]) -> Sequence[float]:
    """Seconds of each `decide`, sorted. now: a clock for measuring (time.perf_counter)."""
    seen, settings = world(places), Settings()
    taken = []
    for index in range(rounds):
        request: Request = classify(Asked(text=PROMPT), request_id=f"d-{index}", at_seconds=NOW_SECONDS)
        began = now()
        decide(request, seen, settings, NOW_SECONDS)
        taken.append(now() - began)
    return sorted(taken)
