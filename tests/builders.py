"""Valid defaults for every value a test needs; a test names only what it is about."""

from __future__ import annotations

from dispatcher.vocabulary.fleet import FleetView, Lease, Place, PlaceSeen, PlaceState, PlaceView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import Request
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, GIB
from dispatcher.vocabulary.signal import HOST, Freshness, Reading, Snapshot
from dispatcher.vocabulary.world import World

NOW = 1_700_000_000.0
PHI = Place(server="docker:phi", model="phi3:mini")
LLAMA = Place(server="docker:llama", model="llama3.2:3b")
QWEN = Place(server="docker:qwen", model="qwen2.5:7b")


def a_reading(value: float | None, **changes) -> Reading[float]:
    return Reading(**{"value": value, "at_seconds": NOW, "source": "prometheus", **changes})


def a_snapshot(*, readings: dict[str, float | None] | None = None, **changes) -> Snapshot:
    """Host readings by signal name; a plenty of free memory and an idle CPU unless told otherwise."""
    values = {
        "host_memory_available_bytes": 12.0 * GIB,
        "host_memory_total_bytes": 16.0 * GIB,
        "host_cpu_busy_ratio": 0.1,
        "host_cpu_count": 4.0,
        "host_cpu_steal_ratio": 0.0,
        **(readings or {}),
    }
    defaults = {
        "number": 1,
        "at_seconds": NOW,
        "readings": {(name, HOST): a_reading(value) for name, value in values.items()},
        "source": "prometheus",
        "freshness": Freshness.FRESH,
    }
    return Snapshot(**{**defaults, **changes})


def a_place_view(place: Place = LLAMA, **changes) -> PlaceView:
    defaults = {
        "place": place,
        "state": PlaceState.STOPPED,
        "since_seconds": NOW - 3600,
        "endpoint": "http://127.0.0.1:21000",
        "installed": True,
    }
    return PlaceView(**{**defaults, **changes})


def a_ready_view(place: Place = LLAMA, **changes) -> PlaceView:
    budget = some_profiles().footprint_bytes(place.model, changes.get("num_ctx", 4096))
    return a_place_view(
        place,
        **{
            "state": PlaceState.READY,
            "num_ctx": 4096,
            "budget_bytes": budget,
            "ready_at_seconds": NOW - 3000,
            **changes,
        },
    )


def a_fleet(*views: PlaceView, **changes) -> FleetView:
    places = views or (a_place_view(PHI), a_place_view(LLAMA), a_place_view(QWEN))
    defaults = {
        "places": places,
        "capacity_bytes": 16 * GIB,
        "reserve_bytes": 1 * GIB,
        "reserved_bytes": sum(view.budget_bytes for view in places),
        "provider": "docker",
        "host_cpu_count": 4,
    }
    return FleetView(**{**defaults, **changes})


def some_profiles(**changes) -> Profiles:
    return Profiles(**{"facts": {model.name: model.facts() for model in DEFAULT_CHAIN}, **changes})


def a_world(*, snapshot: Snapshot | None = None, fleet: FleetView | None = None, **changes) -> World:
    return World(
        **{"snapshot": snapshot or a_snapshot(), "fleet": fleet or a_fleet(), "profiles": some_profiles(), **changes}
    )


def a_request(**changes) -> Request:
    return Request(**{"id": "d-1", "at_seconds": NOW, "prompt_tokens": 300, **changes})


def a_lease(place: Place = LLAMA, **changes) -> Lease:
    defaults = {
        "id": "l-1",
        "place": place,
        "decision_id": "d-1",
        "num_ctx": 4096,
        "seconds": 60.0,
        "granted_at_seconds": NOW,
    }
    return Lease(**{**defaults, **changes})


def a_seen(place: Place = LLAMA, **changes) -> PlaceSeen:
    return PlaceSeen(**{"place": place, "running": False, "endpoint": "http://127.0.0.1:21000", **changes})
