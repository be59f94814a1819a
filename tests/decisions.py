"""Decisions with valid defaults, and what they are made of."""

from __future__ import annotations

from typing import Any

from dispatcher.vocabulary.decision import Candidate, Decision, Prediction, Reason, Rejection, Scores, Selected
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.settings import GIB
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_lease,
    a_request,
)

LLAMA_URL = "http://127.0.0.1:21000"


def a_prediction(**changes: Any) -> Prediction:
    defaults: dict[str, Any] = {
        "wait_seconds": 0.0,
        "evict_seconds": 0.0,
        "load_seconds": 0.0,
        "first_token_seconds": 0.4,
        "decode_seconds": 5.7,
        "tokens_per_second": 17.2,
        "source": "history",
        "samples": 12,
    }
    return Prediction(**{**defaults, **changes})


def a_chosen(place: Place = LLAMA, **changes: Any) -> Candidate:
    defaults: dict[str, Any] = {
        "place": place,
        "verdict": "chosen",
        "state": PlaceState.READY,
        "endpoint": LLAMA_URL,
        "num_ctx": 4096,
        "need_bytes": 2 * GIB,
        "score": 0.68,
        "scores": Scores(capability=0.78, performance=0.43, health=1.0),
        "prediction": a_prediction(),
    }
    return Candidate(**{**defaults, **changes})


def a_rejected(place: Place = QWEN, *, rule: str = "memory_short", **changes: Any) -> Candidate:
    leases_only = changes.pop("leases_only", False)
    rejection = Rejection(
        place=place,
        rule=rule,  # type: ignore[arg-type]
        template="needs {} GiB, {} GiB free",
        facts=(5.4, 3.9),
        leases_only=leases_only,
    )
    defaults: dict[str, Any] = {
        "place": place,
        "verdict": "rejected",
        "state": PlaceState.STOPPED,
        "endpoint": None,
        "num_ctx": 4096,
        "need_bytes": round(5.4 * GIB),
        "free_bytes": round(3.9 * GIB),
        "rejection": rejection,
    }
    return Candidate(**{**defaults, **changes})


def a_decision(*candidates: Candidate, **changes: Any) -> Decision:
    """llama chosen, phi its fallback, qwen too big, unless told otherwise."""
    listed = candidates or (
        a_chosen(),
        a_chosen(PHI, verdict="fallback", state=PlaceState.STOPPED, score=0.5, evicts=(QWEN,)),
        a_rejected(),
    )
    defaults: dict[str, Any] = {
        "request": a_request(task="summarization"),
        "at_seconds": NOW,
        "chosen": next((candidate for candidate in listed if candidate.verdict == "chosen"), None),
        "candidates": listed,
        "sentence": "llama3.2:3b is ready.",
        "reasons": (Reason(code="prom_stale", detail="the newest sample is 20 s old"),),
        "snapshot_number": 4127,
        "snapshot_age_seconds": 2.1,
        "snapshot_source": "prometheus",
        "policy": "default@3f2c",
    }
    return Decision(**{**defaults, **changes})


def no_decision(*candidates: Candidate, **changes: Any) -> Decision:
    return a_decision(*(candidates or (a_rejected(),)), chosen=None, sentence="Nothing fits.", **changes)


def a_selected(decision: Decision | None = None, **changes: Any) -> Selected:
    told = decision or a_decision()
    if told.chosen is None:
        return Selected(decision=told, **changes)
    lease = a_lease(expires_at_seconds=NOW + 60)
    return Selected(**{"decision": told, "lease": lease, "state": PlaceState.READY, "eta_seconds": 0.0, **changes})
