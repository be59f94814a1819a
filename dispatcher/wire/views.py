"""What is, as JSON: snapshot, models, leases, recommendations, performance, health, queue, readiness.

Everything is read from values handed in, into the shapes of wire.view_shapes; null means that nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from dispatcher.errors import NotFound
from dispatcher.vocabulary.decision import Candidate, Decision
from dispatcher.vocabulary.fleet import FleetView, LeaseStatus, PlaceState, PlaceView
from dispatcher.vocabulary.profile import BLEND_SAMPLES, NO_RATES, Profiles, Record
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX, PRIORITIES, Priority
from dispatcher.vocabulary.signal import HOST, HOST_SIGNALS, OPTIONAL_SIGNALS, OTHER_SIGNALS, Reading, Snapshot
from dispatcher.vocabulary.words import meant, shortened
from dispatcher.wire.decision import moment, reasons_told, rounded, scores_told, snapshot_used
from dispatcher.wire.view_shapes import (
    Health,
    HealthMetrics,
    LeaseTold,
    ModelHealth,
    ModelsTold,
    ModelTold,
    OllamaHealth,
    Performance,
    PerformanceMetrics,
    PlaceTold,
    Queue,
    QueuePlace,
    Ranked,
    Recommendations,
    Signal,
    SnapshotTold,
    Waiting,
)

MAX_NAMED = 8  # of what is known, where a name is not
_BEST_FIRST: tuple[Health, ...] = ("healthy", "degraded", "unhealthy")
MIN_SAMPLES = 10  # below, a poor success rate does not mean degraded (policy.health_min_samples)
GOOD_SUCCESS_RATIO = 0.9


class _StoredDecisions(Struct):
    decisions: list[msgspec.Raw]


def decisions_document(stored: Iterable[bytes]) -> bytes:
    """The stored JSON documents, as they are, in the order given."""
    return msgspec.json.encode(_StoredDecisions([msgspec.Raw(document) for document in stored]))


def snapshot_document(snapshot: Snapshot, now_seconds: float) -> SnapshotTold:
    """Every reading, and the host's signals that nobody ever gave."""
    readings = {
        **{
            (name, HOST): snapshot.reading(name)
            for name in (*HOST_SIGNALS, *OTHER_SIGNALS)
            if name not in OPTIONAL_SIGNALS
        },
        **snapshot.readings,
    }
    return SnapshotTold(
        number=snapshot.number,
        at=moment(snapshot.at_seconds) or "",
        age_seconds=round(max(0.0, now_seconds - snapshot.at_seconds), 3),
        source=snapshot.source,
        freshness=snapshot.freshness.value,
        scrape_interval_seconds=snapshot.scrape_interval_seconds,
        latches=sorted(snapshot.latches),
        failing={source: str(reason) for source, reason in snapshot.failing.items()},
        signals=[_signal(name, subject, reading, now_seconds) for (name, subject), reading in readings.items()],
    )


def _signal(name: str, subject: str, reading: Reading[float], now_seconds: float) -> Signal:
    seen = reading.at_seconds > 0
    return Signal(
        signal=name,
        subject=subject,
        value=reading.value,
        age_seconds=round(max(0.0, now_seconds - reading.at_seconds), 3) if seen else None,
        source=reading.source,
        unknown=None if reading.unknown is None else reading.unknown.value,
        evaluated_at=moment(reading.evaluated_at_seconds),
    )


def place_health(view: PlaceView) -> Health:
    """Whether it could be used, running or not: stopped is healthy."""
    silent = view.state is PlaceState.READY and not view.answers
    lost = view.state in (PlaceState.STUCK, PlaceState.QUARANTINED) or view.installed is False
    if silent or lost or view.breaker == "open":
        return "unhealthy"
    return "degraded" if view.breaker == "half_open" else "healthy"


def _success(profiles: Profiles, model: str) -> tuple[int, int]:
    """ok of n over all tasks."""
    seen = [success for (name, _), success in profiles.success.items() if name == model]
    return sum(success.ok for success in seen), sum(success.n for success in seen)


def model_health(views: Iterable[PlaceView], ok: int, n: int) -> Health | None:
    """As healthy as its best place; a poor success rate over enough samples is degraded. None without a place."""
    found = {place_health(view) for view in views}
    if not found:
        return None
    best = next(health for health in _BEST_FIRST if health in found)
    return "degraded" if best == "healthy" and n >= MIN_SAMPLES and ok / n < GOOD_SUCCESS_RATIO else best


def _by_model(fleet: FleetView, profiles: Profiles) -> Mapping[str, list[PlaceView]]:
    """The chain in its order, then the models of places outside of it."""
    found: dict[str, list[PlaceView]] = {name: [] for name in profiles.facts}
    for view in fleet.places:
        found.setdefault(view.place.model, []).append(view)
    return found


def models_document(fleet: FleetView, profiles: Profiles) -> ModelsTold:
    return ModelsTold(
        chain=list(profiles.facts),
        provider=fleet.provider,
        failing=fleet.failing,
        rehearsal=fleet.rehearsal,
        draining=fleet.draining,
        pinned_model=fleet.pinned_model,
        capacity_bytes=fleet.capacity_bytes,
        reserve_bytes=fleet.reserve_bytes,
        reserved_bytes=fleet.reserved_bytes,
        models=[_model(name, views, profiles) for name, views in _by_model(fleet, profiles).items()],
    )


def _model(name: str, views: list[PlaceView], profiles: Profiles) -> ModelTold:
    facts, (ok, n) = profiles.facts.get(name), _success(profiles, name)
    return ModelTold(
        model=name,
        in_chain=facts is not None,
        health=model_health(views, ok, n),
        features=sorted(facts.features) if facts else [],
        capabilities=dict(facts.capabilities) if facts else {},
        context_max=facts.context_max if facts else None,
        success_ratio=round(ok / n, 4) if n else None,
        samples=n,
        places=[_place(view, profiles) for view in views],
    )


def _place(view: PlaceView, profiles: Profiles) -> PlaceTold:
    known = view.place.model in profiles.facts
    num_ctx = view.num_ctx or DEFAULT_NUM_CTX
    learned = profiles.rates.get(view.place, NO_RATES).load_seconds.value
    return PlaceTold(
        place=str(view.place),
        state=view.state.value,
        since=moment(view.since_seconds) if view.since_seconds > 0 else None,
        because=view.because,
        health=place_health(view),
        endpoint=view.endpoint,
        installed=view.installed,
        num_ctx=view.num_ctx,
        footprint_bytes=profiles.footprint_bytes(view.place.model, num_ctx, view.parallel) if known else None,
        budget_bytes=view.budget_bytes,
        measured_bytes=view.measured_bytes,
        limit_bytes=view.limit_bytes,
        load_seconds=rounded(view.load_seconds if learned is None else learned),
        eta_seconds=rounded(view.eta_seconds),
        leases=view.leases,
        leased_until=moment(view.leased_until_seconds),
        in_flight=view.in_flight,
        cpu_cores=rounded(view.cpu_cores.value),
        busy=view.busy,
        pinned=view.pinned,
        breaker=view.breaker,
        taken_by=None if view.taken_by is None else str(view.taken_by),
    )


def lease_document(status: LeaseStatus) -> LeaseTold:
    lease = status.lease
    return LeaseTold(
        id=lease.id,
        model=lease.place.model,
        place=str(lease.place),
        decision_id=lease.decision_id,
        state=status.state.value,
        eta_seconds=rounded(status.eta_seconds),
        endpoint=status.endpoint,
        num_ctx=lease.num_ctx,
        seconds=lease.seconds,
        granted_at=moment(lease.granted_at_seconds),
        expires_at=moment(lease.expires_at_seconds),
        ended=status.ended,
    )


def recommendations_document(decision: Decision) -> Recommendations:
    """Chosen and fallbacks as ranks 1, 2, …; the rejected with their rule."""
    usable = [candidate for candidate in decision.candidates if candidate.verdict != "rejected"]
    return Recommendations(
        task=decision.request.task,
        complexity=decision.request.complexity,
        classified_by=decision.request.classified_by,
        evidence=decision.request.evidence,
        reason=decision.sentence,
        degraded=decision.degraded,
        confidence=decision.confidence,
        reasons=reasons_told(decision),
        snapshot=snapshot_used(decision),
        policy=decision.policy,
        rehearsal=decision.rehearsal,
        recommendations=[_ranked(rank, candidate) for rank, candidate in enumerate(usable, start=1)],
        rejected=[_ranked(None, candidate) for candidate in decision.candidates if candidate.verdict == "rejected"],
    )


def _ranked(rank: int | None, candidate: Candidate) -> Ranked:
    prediction = candidate.prediction
    return Ranked(
        rank=rank,
        model=candidate.place.model,
        place=str(candidate.place),
        state=candidate.state.value,
        endpoint=candidate.endpoint,
        rule=None if candidate.rejection is None else candidate.rejection.rule,
        because=candidate.because,
        evicts=[str(victim) for victim in candidate.evicts],
        score=rounded(candidate.score),
        scores=scores_told(candidate),
        predicted_seconds=None if prediction is None else rounded(prediction.total_seconds),
    )


def performance_document(
    profiles: Profiles, records: Iterable[Record], *, agent_type: str | None, model: str | None, task: str | None
) -> PerformanceMetrics:
    """One row per model, task and agent seen; a model of the chain that nobody asked anything has one of nulls, unless
    a task or an agent was named that it knows nothing of. Raises NotFound for a model or an agent that nobody knows: an
    empty answer would hide that its name is misspelt."""
    records = tuple(records)
    _refuse_unknown("model", model, {*profiles.facts, *(record.model for record in records)})
    _refuse_unknown("agent", agent_type, {record.agent for record in records if record.agent})
    found = [
        _performance(record, _load_seconds(profiles, record.model))
        for record in records
        if model in (None, record.model) and task in (None, record.task) and agent_type in (None, record.agent)
    ]
    seen = {row.model for row in found}
    if agent_type is None and task is None:
        unasked = [name for name in profiles.facts if name not in seen and model in (None, name)]
        found += [_unasked(name, _load_seconds(profiles, name)) for name in unasked]
    return PerformanceMetrics(metrics=found)


def _refuse_unknown(what: str, name: str | None, known: set[str]) -> None:
    if name is None or name in known:
        return
    near = meant(name, sorted(known))
    listed = ", ".join(sorted(known)[:MAX_NAMED]) or "none yet"
    raise NotFound(f"no {what} {shortened(name)!r} is known here{near or f'; known: {listed}'}")


def _load_seconds(profiles: Profiles, model: str) -> float | None:
    """At the place where it was loaded most."""
    loads = [rates.load_seconds for place, rates in profiles.rates.items() if place.model == model]
    return max(loads, key=lambda load: load.n).value if loads else None


def _performance(record: Record, load_seconds: float | None) -> Performance:
    return Performance(
        model=record.model,
        task=record.task,
        agent=record.agent or None,
        samples=record.samples,
        success_rate=rounded(record.success_ratio),
        mean_seconds=rounded(record.mean_seconds),
        p50_seconds=rounded(record.p50_seconds),
        p95_seconds=rounded(record.p95_seconds),
        outliers=record.outliers,
        tokens_per_second=rounded(record.tokens_per_second),
        time_to_first_token_seconds=rounded(record.first_token_seconds),
        load_seconds=rounded(load_seconds),
        efficiency=rounded(record.tokens_per_busy_second),
        quality=rounded(record.quality),
        last_updated=moment(record.updated_at_seconds),
        ordering="measured" if record.samples >= BLEND_SAMPLES else "prior",
    )


def _unasked(model: str, load_seconds: float | None) -> Performance:
    return Performance(
        model=model,
        task=None,
        agent=None,
        samples=0,
        success_rate=None,
        mean_seconds=None,
        p50_seconds=None,
        p95_seconds=None,
        outliers=0,
        tokens_per_second=None,
        time_to_first_token_seconds=None,
        load_seconds=rounded(load_seconds),
        efficiency=None,
        quality=None,
        last_updated=None,
        ordering="prior",
    )


def health_document(fleet: FleetView, profiles: Profiles) -> OllamaHealth:
    """unhealthy: no model could be used. degraded: one of them could not, or the engine cannot be asked."""
    models: dict[str, ModelHealth] = {}
    all_ok = all_n = 0
    for name, views in _by_model(fleet, profiles).items():
        ok, n = _success(profiles, name)
        all_ok, all_n = all_ok + ok, all_n + n
        models[name] = ModelHealth(
            status=model_health(views, ok, n) or "unhealthy",
            success_rate=round(ok / n, 4) if n else None,
            samples=n,
            states={str(view.place): view.state.value for view in views},
        )
    words = {model.status for model in models.values()}
    ready = any(view.state is PlaceState.READY and view.answers for view in fleet.places)
    status: Health = "healthy" if words == {"healthy"} and fleet.failing is None else "degraded"
    if not words - {"unhealthy"} or (fleet.failing is not None and not ready):
        status = "unhealthy"
    return OllamaHealth(
        status=status,
        metrics=HealthMetrics(
            success_rate=round(all_ok / all_n, 4) if all_n else None,
            avg_response_time=rounded(_mean_seconds(profiles)),
            consecutive_failures=None,
        ),
        models=models,
    )


def _mean_seconds(profiles: Profiles) -> float | None:
    """Of the places' median request times, weighted by their samples."""
    seen = [rates.request_seconds for rates in profiles.rates.values()]
    weighted = [(measured.value, measured.n) for measured in seen if measured.value is not None]
    n = sum(count for _, count in weighted)
    return sum(value * count for value, count in weighted) / n if n else None


def _of_each(counts: Mapping[Priority, int]) -> dict[str, int]:
    return {**dict.fromkeys(PRIORITIES, 0), **{str(word): count for word, count in counts.items()}}


def queue_document(fleet: FleetView, lines: Iterable[Line]) -> Queue:
    """Every place the gateway has had a request for; and who waits for leases, at /select or in the gateway."""
    return Queue(
        places=[
            QueuePlace(
                place=str(line.place),
                model=line.place.model,
                running=line.running,
                draining=line.draining,
                slots=line.slots,
                waiting=_of_each(line.waiting),
                limits=_of_each(line.limits),
                oldest_wait_seconds=rounded(line.oldest_wait_seconds),
                estimated_wait_seconds=rounded(line.estimated_wait_seconds),
            )
            for line in lines
        ],
        waiting_for_leases=[
            Waiting(
                decision_id=claim.decision_id,
                place=str(claim.place),
                waits_for=[str(victim) for victim in claim.victims],
                until=moment(claim.until_seconds),
            )
            for claim in fleet.claims
        ],
    )
