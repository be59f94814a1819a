"""Which reading to believe, and how far: samples of several sources in, one Snapshot out. Dry.

A signal is Prometheus' reading while that is fresh, else this host's own where it may stand in, else the newest of the
two until it is blind. Rehearsal readings, while there are any, are the only ones: a simulated host must not be mixed
with the real one. A source that fails, and a series that is gone, leave the last reading to its age; an answer that
contradicts itself (NaN, absurd, two series, another clock) is None at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from dispatcher.control.latches import (
    DISTINCT_SECONDS,
    OWN_CPU_SECONDS,
    FreeBytesOf,
    Latch,
    OwnCpu,
    closed_names,
    latched,
    others_cpu_ratio,
    own_cpu,
)
from dispatcher.vocabulary.fleet import FleetView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import (
    ABSENT,
    HOST,
    HOST_SIGNALS,
    OPTIONAL_SIGNALS,
    OTHERS_CPU,
    SIGNALS,
    USUAL_SCRAPE_SECONDS,
    Freshness,
    Reading,
    Sample,
    Snapshot,
    UnknownReason,
    window_seconds,
)

PROMETHEUS, LOCAL, REHEARSAL = "prometheus", "host", "rehearsal"  # names of sources
KEPT_TIMES = 9  # distinct sample times, eight gaps: outages among them, up to five, do not move their lower quartile

Key = tuple[str, str]  # (signal, subject)
Readings = Mapping[Key, Reading[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustState:
    """What is remembered from one snapshot to the next.

    readings: by source, each source's last word. times: distinct sample times of Prometheus by signal, oldest first.
    seen: sources that ever answered.
    """

    number: int = 0
    readings: Mapping[str, Readings] = field(default_factory=dict)
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()
    latches: Mapping[str, Latch] = field(default_factory=dict)
    own: OwnCpu = field(default_factory=OwnCpu)


def trusted(
    state: TrustState,
    samples_by_source: Mapping[str, Sequence[Sample]],
    failures: Mapping[str, UnknownReason],
    fleet: FleetView,
    profiles: Profiles,
    settings: Settings,
    now_seconds: float,
    free_bytes_of: FreeBytesOf,
) -> tuple[TrustState, Snapshot]:
    """One poll's outcome: a source is in `samples_by_source`, or in `failures`, or is not asked any more and forgotten.

    free_bytes_of: memory a place could have, evictions included, given the readings; None when unknown.
    """
    state = _taken_in(state, samples_by_source, failures, settings, now_seconds)
    readings = _believed(state, failures, fleet, settings, now_seconds)
    memory = readings["host_memory_available_bytes", HOST]
    scrape_seconds = scrape_interval_seconds(state)
    snapshot = Snapshot(
        number=state.number + 1,
        at_seconds=now_seconds,
        readings=readings,
        latches=closed_names(state.latches),
        source=_source_of(readings),
        failing=_failing(samples_by_source, failures, state, settings),
        freshness=_freshness(memory, fresh_seconds(state, memory.source, HOST_SIGNALS[0], settings), now_seconds),
        scrape_interval_seconds=scrape_seconds,
        stale=_stale(readings, state, settings, now_seconds),
    )
    own = own_cpu(state.own, fleet, snapshot, now_seconds, window_seconds("host_cpu_busy_ratio", scrape_seconds))
    readings[OTHERS_CPU, HOST] = _others_cpu(own, snapshot, fleet)
    snapshot = replace(snapshot, readings=readings)
    step_max_seconds = max(OWN_CPU_SECONDS, fresh_seconds(state, PROMETHEUS, "host_cpu_busy_ratio", settings))
    latches = latched(state.latches, own, snapshot, fleet, profiles, settings.policy, free_bytes_of, step_max_seconds)
    state = replace(state, number=snapshot.number, latches=latches, own=own)
    return state, replace(snapshot, latches=closed_names(latches))


def scrape_interval_seconds(state: TrustState, signal: str = "host_memory_available_bytes") -> float | None:
    """Lower quartile of the gaps between the distinct sample times Prometheus gave for a signal; None until two were
    seen. Not their median: an outage makes a gap longer, and a Prometheus that comes and goes would teach that
    minutes between scrapes are usual, and what is minutes old, fresh."""
    times = state.times.get(signal, ())
    gaps = sorted(after - before for before, after in pairwise(times))
    return gaps[len(gaps) // 4] if gaps else None


def fresh_seconds(state: TrustState, source: str, signal: str, settings: Settings) -> float:
    """How old a reading may be and still be fresh. Never below that many polls: a target scraped every second, looked
    at every five, must not flap."""
    poll_seconds = settings.telemetry.interval_seconds
    interval_seconds = poll_seconds
    if source == PROMETHEUS:
        interval_seconds = scrape_interval_seconds(state, signal) or USUAL_SCRAPE_SECONDS
    policy = settings.policy
    return min(policy.fresh_scrapes * max(interval_seconds, poll_seconds), policy.blind_after_seconds)


# ── taking in ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _taken_in(
    state: TrustState,
    samples_by_source: Mapping[str, Sequence[Sample]],
    failures: Mapping[str, UnknownReason],
    settings: Settings,
    now_seconds: float,
) -> TrustState:
    blind_seconds = settings.policy.blind_after_seconds
    readings = {source: old for source, old in state.readings.items() if source in failures}
    for source, samples in samples_by_source.items():
        readings[source] = _merged(state.readings.get(source, {}), samples, now_seconds, blind_seconds)
    times = dict(state.times) if PROMETHEUS in readings else {}
    for sample in samples_by_source.get(PROMETHEUS, ()):
        if sample.value is not None:
            times[sample.signal] = _with_time(times.get(sample.signal, ()), sample.at_seconds)
    return replace(state, readings=readings, times=times, seen=state.seen | samples_by_source.keys())


def _merged(old: Readings, samples: Sequence[Sample], now_seconds: float, blind_seconds: float) -> Readings:
    """The source's new word, over what it said before of series that are gone now and not yet blind; a host signal
    that is gone for longer stays, to be called stale instead of never seen."""
    merged = {
        key: reading
        for key, reading in old.items()
        if reading.value is not None and (now_seconds - reading.at_seconds <= blind_seconds or key[0] in HOST_SIGNALS)
    }
    for sample in samples:
        key = (sample.signal, sample.subject)
        if sample.value is not None or key not in merged or sample.unknown not in ABSENT:
            merged[key] = Reading(
                value=sample.value,
                at_seconds=sample.at_seconds,
                source=sample.source,
                unknown=sample.unknown,
                evaluated_at_seconds=sample.evaluated_at_seconds,
            )
    subjects = {signal for signal, subject in merged if subject != HOST}
    return {
        (signal, subject): reading
        for (signal, subject), reading in merged.items()
        if subject != HOST or reading.value is not None or signal not in subjects
    }


def _with_time(times: tuple[float, ...], at_seconds: float) -> tuple[float, ...]:
    if times and at_seconds < times[-1] + DISTINCT_SECONDS:
        return times
    return (*times, at_seconds)[-KEPT_TIMES:]


# ── believing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _believed(
    state: TrustState, failures: Mapping[str, UnknownReason], fleet: FleetView, settings: Settings, now_seconds: float
) -> dict[Key, Reading[float]]:
    """One reading per (signal, subject) that some source ever named, and one for the whole of each other signal."""
    sources: tuple[str, ...] = (PROMETHEUS,)
    if REHEARSAL in state.readings:
        sources = (REHEARSAL,)
    elif fleet.local and settings.telemetry.host_enabled:
        sources = (PROMETHEUS, LOCAL)
    keys = dict.fromkeys(key for source in sources for key in state.readings.get(source, ()))
    named = {signal for signal, _ in keys}
    keys.update(dict.fromkeys((signal, HOST) for signal in SIGNALS if signal not in named))
    readings = {key: _reading(key, sources, state, failures, settings, now_seconds) for key in keys}
    return {key: reading for key, reading in readings.items() if not _absent(key, reading, sources, state, failures)}


def _absent(
    key: Key,
    reading: Reading[float],
    sources: Sequence[str],
    state: TrustState,
    failures: Mapping[str, UnknownReason],
) -> bool:
    """Of a signal that need not be there, when everybody was heard and nobody said more than that it is not."""
    if failures:
        return False
    told = (state.readings[source].get(key) for source in sources if source in state.readings)
    return (
        key[0] in OPTIONAL_SIGNALS
        and reading.value is None
        and all(one is None or (one.value is None and one.unknown in ABSENT) for one in told)
    )


def _reading(
    key: Key,
    sources: Sequence[str],
    state: TrustState,
    failures: Mapping[str, UnknownReason],
    settings: Settings,
    now_seconds: float,
) -> Reading[float]:
    told = {source: state.readings[source][key] for source in sources if key in state.readings.get(source, ())}
    known = [reading for reading in told.values() if reading.value is not None]
    for source, reading in told.items():
        age_seconds = now_seconds - reading.at_seconds
        if reading.value is not None and age_seconds <= fresh_seconds(state, source, key[0], settings):
            return reading
    newest = max(known, key=lambda reading: reading.at_seconds, default=None)
    if newest is None:
        why = _why_unknown(sources, told, state, failures, settings)
        return Reading(value=None, at_seconds=0.0, source="none", unknown=why)
    if now_seconds - newest.at_seconds <= settings.policy.blind_after_seconds:
        return newest
    return replace(newest, value=None, unknown=UnknownReason.PROM_STALE)


def _why_unknown(
    sources: Sequence[str],
    told: Mapping[str, Reading[float]],
    state: TrustState,
    failures: Mapping[str, UnknownReason],
    settings: Settings,
) -> UnknownReason:
    """The most telling: a source that should answer and does not, then what a source said of the series itself, then
    a source that was only tried."""
    said = [reading.unknown for source in sources if (reading := told.get(source)) is not None]
    expected = [failures[source] for source in sources if source in failures and _counts(source, state, settings)]
    tried = [failures[source] for source in sources if source in failures]
    return next((why for why in (*expected, *said, *tried) if why is not None), UnknownReason.NEVER_SEEN)


def _counts(source: str, state: TrustState, settings: Settings) -> bool:
    """Its silence is a degradation: it is configured, or it has answered before."""
    if source == PROMETHEUS and settings.telemetry.prometheus.enabled == "true":
        return True
    return source in state.seen or (source == LOCAL and settings.telemetry.host_enabled)


def _failing(
    samples_by_source: Mapping[str, Sequence[Sample]],
    failures: Mapping[str, UnknownReason],
    state: TrustState,
    settings: Settings,
) -> dict[str, UnknownReason]:
    """Also a source that answers by another clock: nothing it says can be believed."""
    failing = {name: why for name, why in failures.items() if _counts(name, state, settings)}
    for name, samples in samples_by_source.items():
        known = any(sample.value is not None for sample in samples)
        if not known and any(sample.unknown is UnknownReason.CLOCK_SKEW for sample in samples):
            failing[name] = UnknownReason.CLOCK_SKEW
    return failing


def _source_of(readings: Readings) -> str:
    used = {reading.source for signal in HOST_SIGNALS if (reading := readings[signal, HOST]).value is not None}
    return "mixed" if len(used) > 1 else next(iter(used), "none")


def _others_cpu(own: OwnCpu, snapshot: Snapshot, fleet: FleetView) -> Reading[float]:
    """As old as the host's CPU, and from its source; None where our places' share of it is unknown."""
    busy = snapshot.reading("host_cpu_busy_ratio")
    others = others_cpu_ratio(own, snapshot, fleet)
    return replace(busy, value=others, unknown=None if others is not None else busy.unknown or UnknownReason.EMPTY)


def _stale(readings: Readings, state: TrustState, settings: Settings, now_seconds: float) -> frozenset[str]:
    known = {signal: reading for signal in HOST_SIGNALS if (reading := readings[signal, HOST]).value is not None}
    return frozenset(
        signal
        for signal, reading in known.items()
        if now_seconds - reading.at_seconds > fresh_seconds(state, reading.source, signal, settings)
    )


def _freshness(reading: Reading[float], limit_seconds: float, now_seconds: float) -> Freshness:
    if reading.value is None:
        return Freshness.BLIND
    return Freshness.FRESH if now_seconds - reading.at_seconds <= limit_seconds else Freshness.STALE
