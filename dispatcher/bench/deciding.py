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
PROMPT = "Please review this function and explain why it fails when the list is empty: def mean(xs): return sum(xs)/len(xs)"


def world(places: int) -> World:
    """`places` places in all states a busy host has, enough memory for some and not for all."""
    settings = Settings()
    facts = {model.name: model.facts() for model in DEFAULT_CHAIN}
    profiles = Profiles(facts=facts)
    views = []
    for index in range(places):
        model = DEFAULT_CHAIN[index % len(DEFAULT_CHAIN)].name
        ready = index % 3 == 1
        views.append(
            PlaceView(
                place=Place(server=f"docker:place-{index}", model=model),
                state=PlaceState.READY if ready else PlaceState.STOPPED,
                since_seconds=NOW_SECONDS - 3600,
                endpoint=f"http://127.0.0.1:{20000 + index % 10000}",
                installed=True,
                num_ctx=4096 if ready else None,
                budget_bytes=profiles.footprint_bytes(model, 4096) if ready else 0,
                ready_at_seconds=NOW_SECONDS - 3000 if ready else None,
                leases=index % 2 if ready else 0,
                busy=ready and index % 2 == 1,
            )
        )
    reserved = sum(view.budget_bytes for view in views)
    readings = {
        "host_memory_available_bytes": 3.0 * GIB,
        "host_memory_total_bytes": 16.0 * GIB,
        "host_cpu_busy_ratio": 0.3,
        "host_cpu_steal_ratio": 0.0,
        "host_cpu_count": 4.0,
    }
    snapshot = Snapshot(
        number=1,
        at_seconds=NOW_SECONDS,
        readings={
            (name, HOST): Reading(value=value, at_seconds=NOW_SECONDS, source="prometheus")
            for name, value in readings.items()
        },
        source="prometheus",
        freshness=Freshness.FRESH,
    )
    fleet = FleetView(
        places=tuple(views),
        capacity_bytes=reserved + 4 * GIB,
        reserve_bytes=GIB,
        reserved_bytes=reserved,
        provider="docker",
        host_cpu_count=4,
    )
    assert settings.models == DEFAULT_CHAIN
    return World(snapshot=snapshot, fleet=fleet, profiles=profiles)


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
