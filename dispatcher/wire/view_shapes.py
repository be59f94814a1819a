"""The shapes of what the reads answer: field order is key order, openapi.json is generated from them. null: unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from dispatcher.wire.shapes import DecisionKept, ScoreParts, SnapshotUsed, Told

Health = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing readiness rests on. age_seconds: of what was seen; None when never or not applicable."""

    name: str
    ok: bool
    because: str
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """retry_after_seconds: when asking again may help; only read while not ready."""

    ready: bool
    checks: tuple[Check, ...] = ()
    retry_after_seconds: int = 5


class Signal(Struct, kw_only=True, frozen=True):
    """subject: a container's or model's name, empty for the host. unknown: why value is null. evaluated_at: the
    query's time, by Prometheus' clock; its expression asked for that time gives this value again."""

    signal: str
    subject: str
    value: float | None
    age_seconds: float | None
    source: str
    unknown: str | None
    evaluated_at: str | None


class SnapshotTold(Struct, kw_only=True, frozen=True):
    """failing: source → reason. latches: thresholds held above their leave value."""

    number: int
    at: str
    age_seconds: float
    source: str
    freshness: str
    scrape_interval_seconds: float | None
    latches: list[str]
    failing: dict[str, str]
    signals: list[Signal]


class PlaceTold(Struct, kw_only=True, frozen=True):
    """budget_bytes: what it holds of the ledger. measured_bytes: what it was seen to use."""

    place: str
    state: str
    since: str | None
    because: str
    health: Health
    endpoint: str | None
    installed: bool | None
    num_ctx: int | None
    footprint_bytes: int | None
    budget_bytes: int
    measured_bytes: int | None
    limit_bytes: int | None
    load_seconds: float | None
    eta_seconds: float | None
    leases: int
    leased_until: str | None
    in_flight: int
    cpu_cores: float | None
    busy: bool
    pinned: bool
    breaker: str
    taken_by: str | None


class ModelTold(Struct, kw_only=True, frozen=True):
    """health null: no place is known. success_ratio null: no samples."""

    model: str
    in_chain: bool
    health: Health | None
    features: list[str]
    capabilities: dict[str, float]
    context_max: int | None
    success_ratio: float | None
    samples: int
    places: list[PlaceTold]


class ModelsTold(Struct, kw_only=True, frozen=True):
    """capacity_bytes null: the host's memory is not known. failing: why the engine cannot be asked."""

    chain: list[str]
    provider: str
    failing: str | None
    rehearsal: bool
    draining: bool
    pinned_model: str | None
    capacity_bytes: int | None
    reserve_bytes: int
    reserved_bytes: int
    models: list[ModelTold]


class LeaseTold(Struct, kw_only=True, frozen=True):
    """expires_at null: its time has not begun. eta_seconds null: unknown. ended null: it lives."""

    id: str
    model: str
    place: str
    decision_id: str
    state: str
    eta_seconds: float | None
    endpoint: str | None
    num_ctx: int
    seconds: float
    granted_at: str | None
    expires_at: str | None
    ended: str | None


class ActionTold(Struct, kw_only=True, frozen=True):
    """What an act by hand began. state: of the model's (first) place; null: no place of it is known. place, evicts:
    only where something is started."""

    model: str
    action: Literal["start", "stop", "pin", "unpin", "forget"]
    state: str | None
    because: str
    place: str | None = None
    evicts: list[str] = []


class Ranked(Struct, kw_only=True, frozen=True):
    """rank null: rejected, and rule says which rule did it."""

    rank: int | None
    model: str
    place: str
    state: str
    endpoint: str | None
    rule: str | None
    because: str
    evicts: list[str]
    score: float | None
    scores: ScoreParts | None
    predicted_seconds: float | None


class Recommendations(Struct, kw_only=True, frozen=True):
    task: str
    complexity: str
    classified_by: str
    evidence: tuple[str, ...]
    reason: str
    degraded: bool
    confidence: str
    reasons: list[Told]
    snapshot: SnapshotUsed
    policy: str
    rehearsal: bool
    recommendations: list[Ranked]
    rejected: list[Ranked]


class Performance(Struct, kw_only=True, frozen=True):
    """Of one model, task and agent, over all its places and at most 100 requests at each; older than a week they fade.
    agent null: unnamed. ordering: prior below 5 samples. seconds: whole requests, a timeout as at least its timeout.
    outliers: requests far above the median; in p95 as they were, in mean and efficiency as the limit they passed.
    time_to_first_token_seconds, tokens_per_second: medians, where the engine's durations are known. load_seconds:
    median of the model's loads, whoever asked. efficiency: output tokens per second that the model worked. quality:
    mean of what was reported, 0..10."""

    model: str
    task: str | None
    agent: str | None
    samples: int
    success_rate: float | None
    mean_seconds: float | None
    p50_seconds: float | None
    p95_seconds: float | None
    outliers: int
    tokens_per_second: float | None
    time_to_first_token_seconds: float | None
    load_seconds: float | None
    efficiency: float | None
    quality: float | None
    last_updated: str | None
    ordering: Literal["measured", "prior"]


class PerformanceMetrics(Struct, kw_only=True, frozen=True):
    metrics: list[Performance]


class HealthMetrics(Struct, kw_only=True, frozen=True):
    """avg_response_time: seconds."""

    success_rate: float | None
    avg_response_time: float | None
    consecutive_failures: int | None


class ModelHealth(Struct, kw_only=True, frozen=True):
    status: Health
    success_rate: float | None
    samples: int
    states: dict[str, str]


class OllamaHealth(Struct, kw_only=True, frozen=True):
    status: Health
    metrics: HealthMetrics
    models: dict[str, ModelHealth]


class QueuePlace(Struct, kw_only=True, frozen=True):
    """running: requests at its engine; slots: how many may be. draining: slots that prompts which were cancelled still
    take. waiting, limits: by priority; one more than the limit is refused. oldest_wait_seconds null: nobody waits.
    estimated_wait_seconds: of a normal request that came now."""

    place: str
    model: str
    running: int
    draining: int
    slots: int
    waiting: dict[str, int]
    limits: dict[str, int]
    oldest_wait_seconds: float | None
    estimated_wait_seconds: float | None


class Waiting(Struct, kw_only=True, frozen=True):
    """A request that waits for leases to end."""

    decision_id: str
    place: str
    waits_for: list[str]
    until: str | None


class Queue(Struct, kw_only=True, frozen=True):
    places: list[QueuePlace]
    waiting_for_leases: list[Waiting]


class Liveness(Struct, kw_only=True, frozen=True):
    alive: bool
    heartbeat_age_seconds: float


class Decisions(Struct, kw_only=True, frozen=True):
    decisions: list[DecisionKept]
