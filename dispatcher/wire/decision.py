"""Decisions as JSON: the answer of /select, the refusal when no model is usable, and the whole for history and explain.

Built from wire.shapes for speed: an answer of three candidates costs some 20 µs, encoded.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from dispatcher.vocabulary.decision import Candidate, Decision, Prediction, Selected
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.preference_settings import NO_OPTIONS, GenerationOptions
from dispatcher.wire.problem import PROBLEMS, URN, within_limits
from dispatcher.wire.shapes import (
    Answer,
    CandidateKept,
    CandidateTold,
    DecisionKept,
    Fallback,
    Granted,
    NoModel,
    Options,
    Predicted,
    PredictedInFull,
    RequestKept,
    ScoreParts,
    SnapshotUsed,
    Told,
    Urls,
)

# Rules that speak of the request and the model, not of this machine now: they say nothing about memory.
_FITTING_OR_NOT = frozenset({"not_allowed", "lacks_capability", "context_too_long"})
_NOT_DURABLE = "the lease is granted from memory only: the disk refused to record it, a restart would forget it"


_encoder = msgspec.json.Encoder()


def encode(shape: object) -> bytes:
    """Any document of this room as JSON bytes; a number that is none (NaN) becomes null."""
    return _encoder.encode(shape)


def document(selected: Selected) -> dict[str, Any]:
    """The response of /select as plain dicts and lists. AssertionError when nothing was chosen: see no_model."""
    shape: dict[str, Any] = msgspec.to_builtins(answer(selected))
    return shape


def decision_document(decision: Decision) -> dict[str, Any]:
    """The whole decision as plain dicts and lists: GET /decisions/{id}, and what history keeps."""
    shape: dict[str, Any] = msgspec.to_builtins(kept(decision))
    return shape


def answer(selected: Selected) -> Answer:
    """AssertionError when nothing was chosen: that is no_model's."""
    decision = selected.decision
    chosen, request, lease = decision.chosen, decision.request, selected.lease
    assert chosen is not None, f"decision {decision.id} names no model"
    endpoint = selected.endpoint if selected.endpoint is not None else chosen.endpoint
    reasons = reasons_told(decision)
    if not selected.durable and all(told.code != "not_durable" for told in reasons):
        reasons.append(Told(code="not_durable", detail=_NOT_DURABLE))
    return Answer(
        decision_id=request.id,
        model=chosen.place.model,
        endpoint=endpoint,
        urls=None if endpoint is None else _urls(endpoint),
        state=selected.state.value,
        eta_seconds=rounded(selected.eta_seconds),
        options=_options(chosen.num_ctx, decision.options),
        keep_alive=-1,
        lease=None if lease is None else Granted(id=lease.id, expires_at=moment(lease.expires_at_seconds)),
        reason=decision.sentence or f"{chosen.place.model}: {chosen.because}",
        task=request.task,
        complexity=request.complexity,
        classified_by=request.classified_by,
        degraded=decision.degraded,
        confidence=decision.confidence,
        reasons=reasons,
        predicted=None if chosen.prediction is None else _predicted(chosen.prediction),
        fallbacks=[
            Fallback(model=other.place.model, endpoint=other.endpoint, state=other.state.value)
            for other in decision.candidates
            if other.verdict == "fallback"
        ],
        snapshot=snapshot_used(decision),
        policy=decision.policy,
        arm=decision.arm,
        rehearsal=decision.rehearsal,
        candidates=[_told(candidate) for candidate in decision.candidates],
    )


def no_model(decision: Decision, instance: str) -> NoModel:
    """Of a decision that chose nothing. insufficient_memory when its smallest candidate does not fit."""
    request, smallest = decision.request, insufficient_memory(decision)
    word = "no_usable_model" if smallest is None else "insufficient_memory"
    status, title = PROBLEMS[word]
    passes = smallest is None and _may_pass(decision)
    again_seconds = decision.retry_after_seconds
    if not passes and request.deadline_seconds is not None:
        again_seconds = min(again_seconds, int(request.deadline_seconds))  # nobody waits for longer than that
    return NoModel(
        type=URN + word,
        title=title,
        status=status,
        detail=decision.sentence or _why_none(decision),
        instance=instance,
        decision_id=request.id,
        model=None,
        decision="wait",
        should_retry=passes,
        retry_after_seconds=within_limits(again_seconds),
        needed_bytes=None if smallest is None else smallest.need_bytes,
        available_bytes=None if smallest is None else smallest.free_bytes,
        task=request.task,
        complexity=request.complexity,
        classified_by=request.classified_by,
        degraded=decision.degraded,
        confidence=decision.confidence,
        reasons=reasons_told(decision),
        snapshot=snapshot_used(decision),
        policy=decision.policy,
        arm=decision.arm,
        rehearsal=decision.rehearsal,
        candidates=[_told(candidate) for candidate in decision.candidates],
    )


def insufficient_memory(decision: Decision) -> Candidate | None:
    """The smallest candidate, when memory is all that is in the way of every one, and neither our own leases, others'
    dwell or work, nor a latch alone: these pass."""
    if decision.chosen is not None:
        return None
    smallest: Candidate | None = None
    for candidate in decision.candidates:
        rejection = candidate.rejection
        if rejection is None or rejection.rule in _FITTING_OR_NOT:
            continue
        passes = rejection.leases_only or rejection.latch_only or rejection.passing
        if rejection.rule != "memory_short" or passes or candidate.need_bytes is None:
            return None
        if smallest is None or smallest.need_bytes is None or candidate.need_bytes < smallest.need_bytes:
            smallest = candidate
    return smallest


def _may_pass(decision: Decision) -> bool:
    """Whether the same request may find a model later: not when every model is unfit for it by what it is, or too slow
    for its deadline even where nothing has to be waited for."""
    refused = [candidate for candidate in decision.candidates if candidate.rejection is not None]
    return not refused or not all(_stays_unfit(candidate, decision.request.deadline_seconds) for candidate in refused)


def _stays_unfit(candidate: Candidate, deadline_seconds: float | None) -> bool:
    rule, prediction = None if candidate.rejection is None else candidate.rejection.rule, candidate.prediction
    if rule != "too_slow_for_deadline":
        return rule in _FITTING_OR_NOT
    if prediction is None or deadline_seconds is None:
        return False
    return prediction.first_token_seconds + prediction.decode_seconds > deadline_seconds


def kept(decision: Decision) -> DecisionKept:
    chosen, request = decision.chosen, decision.request
    return DecisionKept(
        decision_id=request.id,
        at=moment(decision.at_seconds) or "",
        model=None if chosen is None else chosen.place.model,
        place=None if chosen is None else str(chosen.place),
        reason=decision.sentence or (_why_none(decision) if chosen is None else chosen.because),
        request=RequestKept(
            task=request.task,
            complexity=request.complexity,
            classified_by=request.classified_by,
            evidence=request.evidence,
            prefer=request.prefer,
            model=request.model,
            requires=sorted(request.requires),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            deadline_seconds=request.deadline_seconds,
            priority=request.priority,
            agent=request.agent,
            start=request.start,
            wait_seconds=request.wait_seconds,
            lease_seconds=request.lease_seconds,
            dry_run=request.dry_run,
        ),
        degraded=decision.degraded,
        confidence=decision.confidence,
        reasons=reasons_told(decision),
        snapshot=snapshot_used(decision),
        policy=decision.policy,
        arm=decision.arm,
        rehearsal=decision.rehearsal,
        waits_for=None if decision.wait_for is None else str(decision.wait_for.place),
        retry_after_seconds=decision.retry_after_seconds,
        uncounted=dict(decision.uncounted),
        candidates=[_kept_candidate(candidate) for candidate in decision.candidates],
    )


def moment(at_seconds: float | None) -> str | None:
    """RFC 3339, UTC, milliseconds. None for None."""
    if at_seconds is None:
        return None
    return datetime.fromtimestamp(at_seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _options(num_ctx: int, wanted: GenerationOptions) -> Options:
    if wanted is NO_OPTIONS:
        return Options(num_ctx=num_ctx)
    return msgspec.convert({"num_ctx": num_ctx, **wanted.given()}, Options)


def _urls(endpoint: str) -> Urls:
    base = endpoint.rstrip("/")
    return Urls(generate=f"{base}/api/generate", chat=f"{base}/api/chat", openai=f"{base}/v1/chat/completions")


def reasons_told(decision: Decision) -> list[Told]:
    return [Told(code=str(reason.code), detail=reason.detail) for reason in decision.reasons]


def snapshot_used(decision: Decision) -> SnapshotUsed:
    return SnapshotUsed(
        number=decision.snapshot_number,
        age_seconds=rounded(decision.snapshot_age_seconds),
        source=decision.snapshot_source,
    )


def _predicted(prediction: Prediction) -> Predicted:
    return Predicted(
        wait_seconds=round(prediction.wait_seconds, 3),
        load_seconds=round(prediction.load_seconds, 3),
        first_token_seconds=round(prediction.first_token_seconds, 3),
        total_seconds=round(prediction.total_seconds, 3),
        tokens_per_second=round(prediction.tokens_per_second, 3),
        source=prediction.source,
    )


def scores_told(candidate: Candidate) -> ScoreParts | None:
    scores = candidate.scores
    if scores is None:
        return None
    return ScoreParts(
        capability=round(scores.capability, 3), performance=round(scores.performance, 3), health=round(scores.health, 3)
    )


def _told(candidate: Candidate) -> CandidateTold:
    place: Place = candidate.place
    rejection, prediction = candidate.rejection, candidate.prediction
    return CandidateTold(
        model=place.model,
        place=str(place),
        verdict=candidate.verdict,
        rule=None if rejection is None else rejection.rule,
        because=candidate.because,
        evicts=[str(victim) for victim in candidate.evicts],
        score=rounded(candidate.score),
        scores=scores_told(candidate),
        predicted_seconds=None if prediction is None else round(prediction.total_seconds, 3),
    )


def _kept_candidate(candidate: Candidate) -> CandidateKept:
    rejection, prediction = candidate.rejection, candidate.prediction
    return CandidateKept(
        model=candidate.place.model,
        place=str(candidate.place),
        verdict=candidate.verdict,
        rule=None if rejection is None else rejection.rule,
        because=candidate.because,
        evicts=[str(victim) for victim in candidate.evicts],
        score=rounded(candidate.score),
        scores=scores_told(candidate),
        state=candidate.state.value,
        endpoint=candidate.endpoint,
        num_ctx=candidate.num_ctx,
        need_bytes=candidate.need_bytes,
        free_bytes=candidate.free_bytes,
        predicted=None
        if prediction is None
        else PredictedInFull(
            wait_seconds=round(prediction.wait_seconds, 3),
            evict_seconds=round(prediction.evict_seconds, 3),
            load_seconds=round(prediction.load_seconds, 3),
            first_token_seconds=round(prediction.first_token_seconds, 3),
            decode_seconds=round(prediction.decode_seconds, 3),
            total_seconds=round(prediction.total_seconds, 3),
            tokens_per_second=round(prediction.tokens_per_second, 3),
            source=prediction.source,
            samples=prediction.samples,
            spread_ratio=round(prediction.spread_ratio, 3),
        ),
    )


def _why_none(decision: Decision) -> str:
    """One sentence where `decide` gave none."""
    said = "; ".join(f"{candidate.place.model}: {candidate.because}" for candidate in decision.candidates[:3])
    return f"No usable model. {said}" if said else "No usable model: no place to run one is known."
