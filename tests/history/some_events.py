"""Events with valid defaults, for the rooms that read the stream: history, tally, exporter."""

from __future__ import annotations

import json

from dispatcher.vocabulary.action import Start, Stop
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.event import Acted, Completed, Decided, Failed, Leased, Relayed, Sampled
from dispatcher.vocabulary.fleet import Place
from tests.builders import LLAMA, NOW, a_lease, a_request, a_snapshot
from tests.decisions import a_chosen, a_prediction, a_rejected


def a_decision(id: str = "d-1", place: Place | None = LLAMA, request: dict | None = None, **changes) -> Decision:
    predicted = a_prediction(first_token_seconds=1.0, decode_seconds=9.0)
    chosen = None if place is None else a_chosen(place, prediction=predicted)
    candidates = (a_rejected(),) if chosen is None else (chosen, a_rejected())
    asked = a_request(**{"id": id, "task": "coding", "agent": "digest", **(request or {})})
    return Decision(**{"request": asked, "at_seconds": NOW, "chosen": chosen, "candidates": candidates, **changes})


def a_decided(id: str = "d-1", place: Place | None = LLAMA, request: dict | None = None, **changes) -> Decided:
    at_seconds = changes.pop("at_seconds", NOW)
    defaults = {
        "at_seconds": at_seconds,
        "decision": a_decision(id, place, request, at_seconds=at_seconds),
        "outcome": "none" if place is None else "chosen",
        "decide_seconds": 0.0004,
    }
    return Decided(**{**defaults, **changes})


def a_completed(id: str = "d-1", place: Place | None = LLAMA, **changes) -> Completed:
    defaults = {
        "at_seconds": NOW,
        "decision_id": id,
        "model": "nobody" if place is None else place.model,
        "place": place,
        "task": "coding",
        "agent": "digest",
        "status": "ok",
        "duration_seconds": 8.0,
        "predicted_seconds": 10.0,
    }
    return Completed(**{**defaults, **changes})


def a_relayed_end(id: str = "d-1", place: Place | None = LLAMA, **changes) -> Completed:
    """The gateway's own."""
    return a_completed(id, place, **{"relayed": True, "queue_seconds": 0.0, **changes})


def a_failed(place: Place = LLAMA, cause: str = "reset", **changes) -> Failed:
    """An attempt of the gateway's that tells against its place, unless told otherwise."""
    defaults = {"at_seconds": NOW, "decision_id": "d-1", "task": "coding", "agent": "digest", "seconds": 0.5}
    return Failed(**{**defaults, "place": place, "cause": cause, "fails_place": True, **changes})


def a_relayed(place: Place = LLAMA, before: Place | None = None, cause: str = "", **changes) -> Relayed:
    """An attempt begins; with `before`, after another that failed there."""
    attempt = 1 if before is None else 2
    told = {"at_seconds": NOW, "decision_id": "d-1", "attempt": attempt, **changes}
    return Relayed(place=place, before=before, cause=cause, **told)


def a_start(place: Place = LLAMA, **changes) -> Acted:
    action = Start(place=place, num_ctx=4096, cause="leased")
    return Acted(**{"at_seconds": NOW, "action": action, "ok": True, "seconds": 5.0, "load_seconds": 4.0, **changes})


def a_stop(place: Place = LLAMA, cause: str = "idle", **changes) -> Acted:
    return Acted(**{"at_seconds": NOW, "action": Stop(place=place, cause=cause), "ok": True, "seconds": 1.5, **changes})


def a_leased(what: str = "granted", place: Place = LLAMA, at_seconds: float = NOW, **lease) -> Leased:
    return Leased(at_seconds=at_seconds, lease=a_lease(place, **lease), what=what)


def a_sampled(at_seconds: float = NOW, **changes) -> Sampled:
    return Sampled(**{"at_seconds": at_seconds, "snapshot": a_snapshot(), "poll_seconds": 0.02, **changes})


def as_json(decision: Decision) -> bytes:
    """A stand-in for the api's own encoding: enough to tell decisions apart."""
    model = None if decision.chosen is None else decision.chosen.place.model
    return json.dumps({"decision_id": decision.id, "model": model, "task": decision.request.task}).encode()
