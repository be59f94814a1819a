"""The event stream as JSON, for those who watch: what happened, to what, and why. Never a word of a prompt.

A decision is told by its head; GET /decisions/{id} has the whole of it. Who has a lease's id can renew it and give it
back, so it is told to an admin only: whoever was granted the lease has it from there.
"""

from __future__ import annotations

from typing import Any

from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.event import (
    Acted,
    Cached,
    Completed,
    Decided,
    Event,
    Failed,
    Leased,
    Relayed,
    Reloaded,
    Sampled,
    Turned,
)
from dispatcher.vocabulary.experiment import ArmObserved, ExperimentTurned, Shadowed
from dispatcher.wire.decision import encode, moment, rounded


def event_name(event: Event) -> str:
    """decided, leased, relayed, failed, cached, completed, acted, turned, sampled, reloaded, armobserved,
    experimentturned, shadowed, …: the SSE event."""
    return type(event).__name__.lower()


def event_document(event: Event, *, lease_ids: bool = False) -> bytes:
    """One line of JSON; `at` comes first in every one. lease_ids False: null in their place."""
    told = _told(event)
    if not lease_ids and "lease_id" in told:
        told["lease_id"] = None
    return encode({"at": moment(event.at_seconds), **told})


def names_a_lease(event: Event) -> bool:
    """Whether its two forms differ."""
    return isinstance(event, Leased) or (isinstance(event, Decided) and event.lease_id is not None)


def _told(event: Event) -> dict[str, Any]:
    match event:
        case Decided():
            return _decided(event)
        case Leased(lease=lease, what=what, cause=cause):
            told = {"lease_id": lease.id, "decision_id": lease.decision_id, **_place(lease.place)}
            return {**told, "what": what, "cause": cause, "expires_at": moment(lease.expires_at_seconds)}
        case Relayed(decision_id=decision_id, place=place, attempt=attempt, before=before, cause=cause):
            moved = {"before": None if before is None else str(before), "cause": cause}
            return {"decision_id": decision_id, **_place(place), "attempt": attempt, **moved}
        case Failed():
            return _failed(event)
        case Cached(model=model, hit=hit):
            return {"model": model, "hit": hit}
        case Completed():
            return _completed(event)
        case Acted():
            return _acted(event)
        case Turned(what=what, subject=subject, before=before, after=after, because=because):
            return {"what": what, "subject": subject, "before": before, "after": after, "because": because}
        case Sampled(snapshot=snapshot, poll_seconds=poll_seconds, failures=failures, missed_ticks=missed_ticks):
            seen = {"number": snapshot.number, "source": snapshot.source, "freshness": snapshot.freshness.value}
            polled = {"poll_seconds": rounded(poll_seconds), "failures": dict(failures), "missed_ticks": missed_ticks}
            return {**seen, "latches": sorted(snapshot.latches), **polled}
        case Reloaded(ok=ok, because=because, changed=changed, waiting=waiting):
            return {"ok": ok, "because": because, "changed": changed, "waiting": waiting}
        case ArmObserved(experiment_id=experiment_id, arm=arm):
            return {"experiment": experiment_id, "arm": arm}
        case ExperimentTurned(experiment_id=experiment_id, before=before, after=after, because=because):
            turned = {"experiment": experiment_id, "before": before, "after": after, "because": because}
            return {**turned, "winner": event.winner, "metric": event.metric}
        case Shadowed(experiment_id=experiment_id, decision_id=decision_id, divergence=divergence, model=model):
            told = {"experiment": experiment_id, "decision_id": decision_id}
            return {**told, "divergence": divergence, "model": model}
        case _:
            return {}


def _place(place: Any) -> dict[str, Any]:
    return {"model": place.model, "place": str(place)}


def _decided(event: Decided) -> dict[str, Any]:
    decision = event.decision
    chosen, request = decision.chosen, decision.request
    prediction = None if chosen is None else chosen.prediction
    return {
        "decision_id": decision.id,
        "model": None if chosen is None else chosen.place.model,
        "place": None if chosen is None else str(chosen.place),
        "outcome": event.outcome,
        "task": request.task,
        "complexity": request.complexity,
        "reason": decision.sentence,
        "degraded": decision.degraded,
        "predicted_seconds": None if prediction is None else rounded(prediction.total_seconds),
        "lease_id": event.lease_id,
        "rehearsal": decision.rehearsal,
    }


def _failed(event: Failed) -> dict[str, Any]:
    return {
        "decision_id": event.decision_id,
        **_place(event.place),
        "task": event.task,
        "cause": event.cause,
        "seconds": rounded(event.seconds),
        "fails_place": event.fails_place,
    }


def _completed(event: Completed) -> dict[str, Any]:
    return {
        "decision_id": event.decision_id,
        "model": event.model,
        "place": None if event.place is None else str(event.place),
        "task": event.task,
        "status": event.status,
        "duration_seconds": rounded(event.duration_seconds),
        "prompt_tokens": event.prompt_tokens,
        "output_tokens": event.output_tokens,
        "quality": event.quality,
        "predicted_seconds": _rounded(event.predicted_seconds),
        "first_token_seconds": _rounded(event.first_token_seconds),
        "queue_seconds": _rounded(event.queue_seconds),
        "relayed": event.relayed,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else rounded(seconds)


def _acted(event: Acted) -> dict[str, Any]:
    action = event.action
    return {
        "action": "start" if isinstance(action, Start) else "stop",
        **_place(action.place),
        "cause": action.cause,
        "ok": event.ok,
        "seconds": rounded(event.seconds),
        "load_seconds": _rounded(event.load_seconds),
        "because": event.because,
    }
