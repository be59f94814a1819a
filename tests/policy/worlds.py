"""Arbitrary worlds and requests for hypothesis: every state, every unknown, and numbers that are none."""

from __future__ import annotations

from hypothesis import strategies as st

from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import HostSpeed, Measured, Rates, Success
from dispatcher.vocabulary.request import COMPLEXITIES, TASKS, Request
from dispatcher.vocabulary.settings import GIB
from dispatcher.vocabulary.signal import HOST, SIGNALS, Freshness, Reading, Snapshot, UnknownReason
from dispatcher.vocabulary.world import Lost, World
from tests.builders import NOW, some_profiles

MODELS = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b", "outside:1b")
PLACES = [
    Place(server=f"docker:{name}", model=model) for model in MODELS for name in (f"a-{model[:3]}", f"b-{model[:3]}")
]
LATCHES = (
    "cpu_busy",
    "pressure_high",
    "pressure_full",
    "memory_hard",
    *(f"memory_short:{place.server}/{place.model}" for place in PLACES),
)

moments = st.one_of(st.just(0.0), st.floats(NOW - 4000, NOW + 4000))
maybe_moments = st.none() | moments
sizes = st.integers(0, 20 * GIB)
values = st.one_of(
    st.none(), st.floats(0, 1), st.floats(0, 32.0 * GIB), st.sampled_from([float("nan"), float("inf"), -1.0, 0.0])
)
words = st.sampled_from(["", "it exited with 1", "{braces} {0}", "none"])


@st.composite
def readings(draw) -> Reading[float]:
    value = draw(values)
    unknown = draw(st.sampled_from(UnknownReason)) if value is None else None
    source = draw(st.sampled_from(["prometheus", "host", "rehearsal"]))
    return Reading(value=value, at_seconds=draw(moments), source=source, unknown=unknown)


@st.composite
def place_views(draw, place: Place) -> PlaceView:
    claimed = draw(st.booleans())
    return PlaceView(
        place=place,
        state=draw(st.sampled_from(PlaceState)),
        since_seconds=draw(moments),
        because=draw(words),
        endpoint=draw(st.sampled_from([None, "http://127.0.0.1:21000"])),
        installed=draw(st.sampled_from([None, True, False])),
        answers=draw(st.booleans()),
        num_ctx=draw(st.sampled_from([None, 2048, 4096, 8192, 32768])),
        parallel=draw(st.integers(1, 4)),
        budget_bytes=draw(sizes),
        measured_bytes=draw(st.none() | sizes),
        limit_bytes=draw(st.none() | sizes),
        leases=draw(st.integers(0, 3)),
        leased_until_seconds=draw(maybe_moments),
        in_flight=draw(st.integers(0, 3)),
        cpu_cores=draw(readings()),
        busy=draw(st.booleans()),
        pinned=draw(st.booleans()),
        dwell_until_seconds=draw(moments),
        claimed_until_seconds=draw(maybe_moments) if claimed else None,
        claimed_for=draw(st.sampled_from(PLACES)) if claimed else None,
        claimed_by=draw(st.sampled_from(["d-1", "d-9"])) if claimed else None,
        taken_by=draw(st.none() | st.sampled_from(PLACES)),
        eta_seconds=draw(st.none() | st.floats(0, 300)),
        retry_at_seconds=draw(moments),
        ready_at_seconds=draw(maybe_moments),
        started_at_seconds=draw(maybe_moments),
        stopped_at_seconds=draw(maybe_moments),
        released_bytes=draw(sizes),
        used_at_seconds=draw(moments),
        keep_priority=draw(st.floats(0, 100)),
        breaker=draw(st.sampled_from(["closed", "open", "half_open"])),
    )


@st.composite
def snapshots(draw) -> Snapshot:
    names = draw(st.lists(st.sampled_from(SIGNALS), unique=True))
    subjects = st.sampled_from([HOST, *MODELS])
    return Snapshot(
        number=draw(st.integers(0, 9)),
        at_seconds=draw(moments),
        readings={(name, draw(subjects) if "model" in name else HOST): draw(readings()) for name in names},
        latches=frozenset(draw(st.lists(st.sampled_from(LATCHES)))),
        source=draw(st.sampled_from(["prometheus", "host", "mixed", "none"])),
        failing={"prometheus": UnknownReason.PROM_STALE} if draw(st.booleans()) else {},
        freshness=draw(st.sampled_from(Freshness)),
    )


@st.composite
def measured(draw) -> Measured:
    n = draw(st.integers(0, 100))
    return Measured(value=draw(st.floats(0.01, 1000)) if n else None, n=n)


@st.composite
def worlds(draw) -> World:
    places = draw(st.lists(st.sampled_from(PLACES), unique=True, max_size=6))
    rates = st.builds(
        Rates,
        decode_tokens_per_second=measured(),
        prefill_tokens_per_second=measured(),
        load_seconds=measured(),
        stop_seconds=measured(),
        request_seconds=measured(),
    )
    ok = draw(st.integers(0, 50))
    fleet = FleetView(
        places=tuple(draw(place_views(place)) for place in places),
        capacity_bytes=draw(st.none() | sizes),
        reserve_bytes=draw(st.integers(0, 2 * GIB)),
        reserved_bytes=draw(sizes),
        failing=draw(st.sampled_from([None, None, "no answer"])),
        pinned_model=draw(st.none() | st.sampled_from(MODELS)),
        host_cpu_count=draw(st.sampled_from([None, 0, 4])),
    )
    return World(
        snapshot=draw(snapshots()),
        fleet=fleet,
        profiles=some_profiles(
            rates={place: draw(rates) for place in places},
            success={(model, "general"): Success(ok=ok, n=50) for model in MODELS},
            wanted_per_second={model: draw(st.floats(0, 10)) for model in MODELS},
            host_speed=HostSpeed(n=draw(st.integers(0, 3))),
        ),
        lost=dict.fromkeys(draw(st.lists(st.sampled_from(PLACES), max_size=2)), Lost(because="lost")),
    )


@st.composite
def requests(draw) -> Request:
    return Request(
        id="d-1",
        at_seconds=draw(st.floats(NOW - 60, NOW)),
        task=draw(st.sampled_from(TASKS)),
        complexity=draw(st.sampled_from(COMPLEXITIES)),
        prefer=draw(st.sampled_from(["speed", "balanced", "quality"])),
        model=draw(st.sampled_from(["auto", "", *MODELS, "unheard:of"])),
        requires=draw(st.frozensets(st.sampled_from(["tools", "json", "vision"]), max_size=2)),
        prompt_tokens=draw(st.sampled_from([0, 1, 300, 4000, 40_000, 10**6])),
        output_tokens=draw(st.sampled_from([0, 1, 200, 5000])),
        deadline_seconds=draw(st.none() | st.floats(0, 600)),
    )
