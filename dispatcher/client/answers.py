"""What the dispatcher answers, as values. `raw` is the whole document as it came: what is new is in it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .troubles import Attempt

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """In seconds from the decision on; source: history, prometheus, calibrated or prior."""

    wait_seconds: float
    load_seconds: float
    first_token_seconds: float
    total_seconds: float
    tokens_per_second: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    model: str
    endpoint: str | None
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One decision. state: call the model only when it is ready. options and keep_alive: to be sent along with a
    direct call, others would load or unload it. lease_id None: nothing was promised. urls: generate, chat, openai."""

    decision_id: str
    model: str
    endpoint: str | None
    urls: Mapping[str, str]
    state: str
    eta_seconds: float | None
    options: Mapping[str, Any]
    keep_alive: int | str
    lease_id: str | None
    expires_at: str | None
    reason: str
    task: str
    complexity: str
    degraded: bool
    confidence: str
    predicted: Predicted | None
    fallbacks: tuple[Fallback, ...]
    rehearsal: bool
    raw: Document = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """state: of its place. expires_at None: its time begins when the place is ready. ended None: it lives."""

    id: str
    model: str
    state: str
    eta_seconds: float | None
    endpoint: str | None
    expires_at: str | None
    ended: str | None
    raw: Document = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """rank None: rejected, by `rule`."""

    rank: int | None
    model: str
    state: str
    endpoint: str | None
    rule: str | None
    because: str
    score: float | None
    predicted_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendations:
    task: str
    complexity: str
    reason: str
    ranked: tuple[Ranked, ...]
    rejected: tuple[Ranked, ...]
    rehearsal: bool
    raw: Document = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """status: healthy, degraded or unhealthy. None: nobody knows yet."""

    status: str
    success_ratio: float | None
    average_seconds: float | None
    consecutive_failures: int | None
    raw: Document = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """states: place → state."""

    model: str
    in_chain: bool
    health: str | None
    states: Mapping[str, str]
    raw: Document = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A whole answer. choice None: it came through the gateway. failed: the models that were tried before.
    outcome_recorded: False when the dispatcher could not be told; None when the gateway keeps the books itself.
    duration_seconds: of the call that succeeded. raw: the last line of the stream, with the engine's own times."""

    text: str = field(repr=False)
    model: str
    decision_id: str | None
    choice: Choice | None = field(repr=False)
    failed: tuple[Attempt, ...]
    prompt_tokens: int | None
    output_tokens: int | None
    duration_seconds: float
    outcome_recorded: bool | None
    raw: Document = field(repr=False)


# Below, a KeyError, TypeError, ValueError or AttributeError means: this is no document of a dispatcher's.


def choice_of(told: Document) -> Choice | None:
    """None: no usable model, as `soft` has it."""
    if told["model"] is None:
        return None
    lease = told["lease"] or {}
    predicted = told["predicted"]
    return Choice(
        **_picked(told, "decision_id model endpoint state eta_seconds keep_alive reason task complexity degraded"),
        **_picked(told, "confidence rehearsal"),
        urls=dict(told["urls"] or {}),
        options=dict(told["options"]),
        lease_id=lease.get("id"),
        expires_at=lease.get("expires_at"),
        predicted=None if predicted is None else Predicted(**_picked(predicted, _PREDICTED)),
        fallbacks=tuple(Fallback(**_picked(one, "model endpoint state")) for one in told["fallbacks"]),
        raw=told,
    )


def lease_of(told: Document) -> Lease:
    return Lease(**_picked(told, "id model state eta_seconds endpoint expires_at ended"), raw=told)


def recommendations_of(told: Document) -> Recommendations:
    return Recommendations(
        **_picked(told, "task complexity reason rehearsal"),
        ranked=tuple(Ranked(**_picked(one, _RANKED)) for one in told["recommendations"]),
        rejected=tuple(Ranked(**_picked(one, _RANKED)) for one in told["rejected"]),
        raw=told,
    )


def health_of(told: Document) -> Health:
    metrics = told["metrics"]
    return Health(
        status=told["status"],
        success_ratio=metrics["success_rate"],
        average_seconds=metrics["avg_response_time"],
        consecutive_failures=metrics["consecutive_failures"],
        raw=told,
    )


def models_of(told: Document) -> tuple[Model, ...]:
    return tuple(
        Model(
            **_picked(one, "model in_chain health"),
            states={place["place"]: place["state"] for place in one["places"]},
            raw=one,
        )
        for one in told["models"]
    )


_PREDICTED = "wait_seconds load_seconds first_token_seconds total_seconds tokens_per_second source"
_RANKED = "rank model state endpoint rule because score predicted_seconds"


def _picked(told: Mapping[str, Any], names: str) -> dict[str, Any]:
    return {name: told[name] for name in names.split()}
