"""What is measured, and what is known of it. A Sample is raw; a Reading has passed control.trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownReason(StrEnum):
    """Why nobody knows. A closed vocabulary: it labels metrics and stands in decisions."""

    PROM_UNREACHABLE = "prom_unreachable"
    PROM_ERROR = "prom_error"
    PROM_UNAUTHORIZED = "prom_unauthorized"
    PROM_TOO_LARGE = "prom_too_large"
    PROM_STALE = "prom_stale"
    NEVER_SEEN = "never_seen"
    EMPTY = "empty"
    NOT_A_NUMBER = "not_a_number"
    ABSURD = "absurd"
    MULTI_SERIES = "multi_series"
    CLOCK_SKEW = "clock_skew"
    ENGINE_UNREACHABLE = "engine_unreachable"
    HOST_UNREADABLE = "host_unreadable"


ABSENT = frozenset(  # of a sample: the source could not say, which does not contradict what it said before
    {UnknownReason.EMPTY, UnknownReason.PROM_STALE, UnknownReason.PROM_ERROR, UnknownReason.PROM_UNREACHABLE}
)
HOST = ""  # the subject of a signal that speaks of the whole host

HOST_SIGNALS = (
    "host_memory_available_bytes",
    "host_memory_total_bytes",
    "host_cpu_busy_ratio",
    "host_cpu_steal_ratio",
    "host_memory_pressure_ratio",
    "host_memory_pressure_full_ratio",
    "host_cpu_pressure_ratio",
    "host_cpu_count",
)
CONTAINER_SIGNALS = (  # subject: the container's name
    "container_memory_bytes",
    "container_cpu_cores",
    "container_oom_events",
    "container_memory_rss_bytes",
    "container_mapped_file_bytes",
)
MODEL_SIGNALS = (  # subject: the model's name
    "model_request_seconds_p50",
    "model_request_seconds_p95",
    "model_tokens_per_second",
)
OPTIONAL_SIGNALS = frozenset({"gpu_memory_free_bytes"})  # most hosts have none: absent is then all there is to say
OTHER_SIGNALS = ("models_loaded", "gpu_memory_free_bytes")
MEAN_SECONDS: Mapping[str, float] = {  # what a ratio is the mean over, whoever measures it: as long as its latch says
    "host_cpu_busy_ratio": 60.0,
    "host_cpu_steal_ratio": 60.0,
    "host_cpu_pressure_ratio": 60.0,
    "host_memory_pressure_ratio": 30.0,
    "host_memory_pressure_full_ratio": 10.0,
}
USUAL_MEAN_SECONDS = 60.0  # of every other rate
USUAL_SCRAPE_SECONDS = 15.0  # Prometheus' usual scrape interval, until the real one has been seen
MOST_SCRAPE_SECONDS = 300.0  # Prometheus forgets an instant value after so long: nobody scrapes more rarely
SCRAPES_PER_WINDOW = 4.0  # that a minute's rate rests on, at least
SCRAPES_PER_SHORT_WINDOW = 2.2  # two samples are a rate; the rest is the jitter of scraping
OTHERS_CPU = "host_cpu_others_ratio"  # worked out by control.trust and asked of nobody: no part of SIGNALS
SIGNALS = HOST_SIGNALS + CONTAINER_SIGNALS + MODEL_SIGNALS + OTHER_SIGNALS


def window_seconds(signal: str, scrape_interval_seconds: float | None) -> float:
    """What Prometheus' rate for this signal reaches back over. Its counters give the exact mean over any window that
    holds two scrapes; a latch shorter than that is judged by the shortest mean there is."""
    mean_seconds = MEAN_SECONDS.get(signal, USUAL_MEAN_SECONDS)
    scrapes = SCRAPES_PER_WINDOW if mean_seconds >= USUAL_MEAN_SECONDS else SCRAPES_PER_SHORT_WINDOW
    return max(mean_seconds, scrapes * min(scrape_interval_seconds or 0.0, MOST_SCRAPE_SECONDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One raw answer about one subject.

    value: in the unit the signal's name says; None when the source could not say, and then `unknown` tells why.
    at_seconds: when the value was true (the sample's own time, not the query's), Unix seconds. evaluated_at_seconds:
    the query's own time, by the clock of who evaluated it; None for what is read and not queried. How it was looked
    at is no part of the fact, so it does not compare.
    """

    signal: str
    subject: str = HOST
    value: float | None
    at_seconds: float
    source: str
    unknown: UnknownReason | None = None
    evaluated_at_seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Generic[T]):
    """A value, when it was true, and who said so. value=None: nobody knows, and `unknown` says why.

    evaluated_at_seconds: as Sample's; the same expression asked again for that moment gives the same value.
    """

    value: T | None
    at_seconds: float
    source: str
    unknown: UnknownReason | None = None
    evaluated_at_seconds: float | None = field(default=None, compare=False)


NEVER_SEEN: Reading[float] = Reading(value=None, at_seconds=0.0, source="none", unknown=UnknownReason.NEVER_SEEN)


class Freshness(StrEnum):
    """Of the signals that gate memory: fresh; stale (beyond 3 scrapes); blind (beyond 5 min, or never)."""

    FRESH = "fresh"
    STALE = "stale"
    BLIND = "blind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything measured, as of one moment. Immutable, numbered, replaced whole; good for choosing (law 1).

    readings: by (signal, subject). latches: names of the thresholds held above their leave value: `cpu_busy`,
    `pressure_high`, `pressure_full`, `memory_hard`, and `memory_short:<place server>/<model>` per place.
    source: prometheus | host | mixed | rehearsal | none, over the host signals. failing: source → reason, for those
    configured or once seen. freshness: of the host's memory, the worst of what deciding needs. stale: the host's
    signals that have a value older than fresh.
    """

    number: int
    at_seconds: float
    readings: Mapping[tuple[str, str], Reading[float]] = field(default_factory=dict)
    latches: frozenset[str] = frozenset()
    source: str = "none"
    failing: Mapping[str, UnknownReason] = field(default_factory=dict)
    freshness: Freshness = Freshness.BLIND
    scrape_interval_seconds: float | None = None
    stale: frozenset[str] = frozenset()

    def reading(self, signal: str, subject: str = HOST) -> Reading[float]:
        return self.readings.get((signal, subject), NEVER_SEEN)
