"""What is read when somebody scrapes: the fleet view, the snapshot and the profiles as numbers. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dispatcher.vocabulary.fleet import FleetView, PlaceState, PlaceView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.request import Priority
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import (
    HOST_SIGNALS,
    OPTIONAL_SIGNALS,
    SIGNALS,
    Freshness,
    Reading,
    Snapshot,
    UnknownReason,
)
from exporter.labels import OTHER

Value = tuple[str, tuple[str, ...], float]  # metric, label values in the catalogue's order, value

_SERVING = frozenset({PlaceState.READY, PlaceState.DRAINING})
_RUNNING = _SERVING | {PlaceState.STARTING}
_BREAKER = {"closed": 0.0, "half_open": 1.0, "open": 2.0}
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,31}")


def configured(fleet: FleetView, settings: Settings) -> tuple[PlaceView, ...]:
    """The places of configured models; others are not exported: their names are nobody's vocabulary."""
    models = {model.name for model in settings.models}
    return tuple(view for view in fleet.places if view.place.model in models)


def fleet_gauges(fleet: FleetView, settings: Settings, profiles: Profiles) -> Iterator[Value]:
    for view in configured(fleet, settings):
        yield from _place_gauges(view, profiles)
    yield "dispatcher_memory_reserved_bytes", (), float(fleet.reserved_bytes)
    if fleet.capacity_bytes is not None:
        yield "dispatcher_memory_capacity_bytes", (), float(fleet.capacity_bytes)
    yield "dispatcher_leases", (), float(sum(view.leases for view in fleet.places))


def _place_gauges(view: PlaceView, profiles: Profiles) -> Iterator[Value]:
    model, place = view.place.model, str(view.place)
    loaded = float(view.state in _SERVING)
    up = view.answers and (view.shared or view.state in _RUNNING)
    yield "ollama_up", (place,), float(up)
    if view.version is not None:
        yield "ollama_info", (place, version_label(view.version)), 1.0
    yield "ollama_models_loaded", (place,), loaded
    yield "ollama_model_loaded", (model, place), loaded
    if view.measured_bytes is not None:
        yield "ollama_model_memory_usage_bytes", (model, place), float(view.measured_bytes)
    if (facts := profiles.facts.get(model)) is not None:
        yield "ollama_model_size_bytes", (model, place), float(facts.file_bytes)
    for state in PlaceState:
        yield "dispatcher_model_state", (model, place, state.value), float(state is view.state)
    yield "dispatcher_breaker_state", (model, place), _BREAKER.get(view.breaker, 0.0)


def model_gauges(fleet: FleetView, settings: Settings, profiles: Profiles) -> Iterator[Value]:
    views = configured(fleet, settings)
    for name in (model.name for model in settings.models):
        rates = [rates.decode_tokens_per_second for place, rates in profiles.rates.items() if place.model == name]
        most_used = max(rates, key=lambda rate: rate.n, default=None)
        if most_used is not None and most_used.value is not None:
            yield "ollama_generation_speed_tokens_per_second", (name,), most_used.value
        healths = [_health(view, profiles, settings) for view in views if view.place.model == name]
        if healths:
            yield "dispatcher_model_health", (name,), max(healths)


def _health(view: PlaceView, profiles: Profiles, settings: Settings) -> float:
    """numbers.md, "Deciding": unhealthy with an open breaker, degraded half-open or below 0.9 over enough samples."""
    if view.breaker == "open" or view.state in (PlaceState.QUARANTINED, PlaceState.STUCK):
        return 0.0
    counted = [success for (model, _), success in profiles.success.items() if model == view.place.model]
    ok, n = sum(success.ok for success in counted), sum(success.n for success in counted)
    poor = n >= settings.policy.health_min_samples and ok / n < 0.9
    return 0.5 if poor or view.breaker == "half_open" else 1.0


def snapshot_gauges(snapshot: Snapshot, fleet: FleetView, now_seconds: float) -> Iterator[Value]:
    ages: dict[str, float] = {}
    unknown: set[tuple[str, str]] = set()
    measured = dict.fromkeys(HOST_SIGNALS, False)
    for (signal, _), reading in snapshot.readings.items():
        if signal not in _SIGNALS or (signal in OPTIONAL_SIGNALS and _not_there(reading)):
            continue
        measured[signal] = True
        if reading.value is None:
            unknown.add((signal, (reading.unknown or UnknownReason.NEVER_SEEN).value))
        else:
            ages[signal] = max(ages.get(signal, 0.0), now_seconds - reading.at_seconds)
    unknown |= {(signal, UnknownReason.NEVER_SEEN.value) for signal, seen in measured.items() if not seen}
    for signal, age_seconds in ages.items():
        yield "dispatcher_signal_age_seconds", (signal,), age_seconds
    for signal in measured:
        for reason in UnknownReason:
            yield "dispatcher_signal_unknown", (signal, reason.value), float((signal, reason.value) in unknown)
    failing = set(snapshot.failing.values()) | ({UnknownReason.ENGINE_UNREACHABLE} if fleet.failing else set())
    if snapshot.freshness is not Freshness.FRESH:  # as decisions say, and with the reason they give
        failing.add(snapshot.reading("host_memory_available_bytes").unknown or UnknownReason.PROM_STALE)
    for reason in UnknownReason:
        yield "dispatcher_degraded", (reason.value,), float(reason in failing)


def _not_there(reading: Reading[float]) -> bool:
    """Unknown for no better reason than that nobody speaks of it: of a GPU most hosts have none."""
    contradicted = {UnknownReason.NOT_A_NUMBER, UnknownReason.ABSURD, UnknownReason.MULTI_SERIES}
    return reading.value is None and reading.unknown not in contradicted


def queue_gauges(lines: Sequence[Line], fleet: FleetView, settings: Settings) -> Iterator[Value]:
    """Where nobody has been yet, nobody waits."""
    rules = settings.gateway.queue
    entries: Mapping[Priority, int] = {
        "high": rules.high_entries,
        "normal": rules.normal_entries,
        "batch": rules.batch_entries,
    }
    known = {line.place: line for line in lines}
    for place in (view.place for view in configured(fleet, settings)):
        line = known.get(place)
        for priority, entry_limit in entries.items():
            waiting, limit = (0, entry_limit) if line is None else (line.waiting[priority], line.limits[priority])
            yield "ollama_queue_depth", (str(place), priority), float(waiting)
            yield "dispatcher_queue_limit", (str(place), priority), float(limit)


def version_label(version: str) -> str:
    return version if _VERSION.fullmatch(version) else OTHER


def by_metric(values: Iterable[Value]) -> Callable[[str], list[tuple[tuple[str, ...], float]]]:
    grouped: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for name, labels, value in values:
        grouped.setdefault(name, []).append((labels, value))
    return lambda name: grouped.get(name, [])


_SIGNALS = frozenset(SIGNALS)
