"""The shapes of what /select and /decisions answer. Field order is key order; openapi.json is generated from them.

They carry every number a decision rests on and nothing of the caller's words: those ended in Asked.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Urls(Struct, kw_only=True, frozen=True):
    """Where to call the model, in each surface's dialect."""

    generate: str
    chat: str
    openai: str


class Options(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """To be sent along with a direct call: another num_ctx reloads the model. The rest as Ollama names it, and only
    what the preferences say for the agent, the task or the model: what the caller wants otherwise goes before."""

    num_ctx: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    num_predict: int | None = None
    seed: int | None = None
    stop: list[str] | None = None


class Granted(Struct, kw_only=True, frozen=True):
    """expires_at null: its time has not begun, the place is not ready yet."""

    id: str
    expires_at: str | None


class Told(Struct, kw_only=True, frozen=True):
    code: str
    detail: str


class Predicted(Struct, kw_only=True, frozen=True):
    """total_seconds also contains what is evicted and the generation itself."""

    wait_seconds: float
    load_seconds: float
    first_token_seconds: float
    total_seconds: float
    tokens_per_second: float
    source: str


class Fallback(Struct, kw_only=True, frozen=True):
    model: str
    endpoint: str | None
    state: str


class SnapshotUsed(Struct, kw_only=True, frozen=True):
    """age_seconds: at the moment of the decision."""

    number: int
    age_seconds: float | None
    source: str


class ScoreParts(Struct, kw_only=True, frozen=True):
    """Each 0..1."""

    capability: float
    performance: float
    health: float


class Judged(Struct, kw_only=True, frozen=True):
    """What every document says of a candidate, before its own."""

    model: str
    place: str
    verdict: Literal["chosen", "fallback", "rejected"]
    rule: str | None
    because: str
    evicts: list[str]
    score: float | None
    scores: ScoreParts | None


class CandidateTold(Judged, kw_only=True, frozen=True):
    predicted_seconds: float | None


class Answer(Struct, kw_only=True, frozen=True):
    """A usable model, the promise of it, and why."""

    decision_id: str
    model: str
    endpoint: str | None
    urls: Urls | None
    state: str
    eta_seconds: float | None
    options: Options
    keep_alive: int
    lease: Granted | None
    reason: str
    task: str
    complexity: str
    classified_by: str
    degraded: bool
    confidence: str
    reasons: list[Told]
    predicted: Predicted | None
    fallbacks: list[Fallback]
    snapshot: SnapshotUsed
    policy: str
    arm: str | None
    rehearsal: bool
    candidates: list[CandidateTold]


class NoModel(Struct, kw_only=True, frozen=True):
    """No usable model: problem+json, or the same with 200 for `soft`. *_bytes: only with insufficient_memory."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    decision_id: str
    model: None
    decision: Literal["wait"]
    should_retry: bool
    retry_after_seconds: int
    needed_bytes: int | None
    available_bytes: int | None
    task: str
    complexity: str
    classified_by: str
    degraded: bool
    confidence: str
    reasons: list[Told]
    snapshot: SnapshotUsed
    policy: str
    arm: str | None
    rehearsal: bool
    candidates: list[CandidateTold]


class RequestKept(Struct, kw_only=True, frozen=True):
    """The features of the request: all that is kept of it."""

    task: str
    complexity: str
    classified_by: str
    evidence: tuple[str, ...]
    prefer: str
    model: str
    requires: list[str]
    prompt_tokens: int
    output_tokens: int
    deadline_seconds: float | None
    priority: str
    agent: str
    start: bool
    wait_seconds: float
    lease_seconds: float | None
    dry_run: bool


class PredictedInFull(Struct, kw_only=True, frozen=True):
    wait_seconds: float
    evict_seconds: float
    load_seconds: float
    first_token_seconds: float
    decode_seconds: float
    total_seconds: float
    tokens_per_second: float
    source: str
    samples: int
    spread_ratio: float


class CandidateKept(Judged, kw_only=True, frozen=True):
    state: str
    endpoint: str | None
    num_ctx: int
    need_bytes: int | None
    free_bytes: int | None
    predicted: PredictedInFull | None


class DecisionKept(Struct, kw_only=True, frozen=True):
    """One whole decision. uncounted: rule → candidates beyond the 32 kept."""

    decision_id: str
    at: str
    model: str | None
    place: str | None
    reason: str
    request: RequestKept
    degraded: bool
    confidence: str
    reasons: list[Told]
    snapshot: SnapshotUsed
    policy: str
    arm: str | None
    rehearsal: bool
    waits_for: str | None
    retry_after_seconds: int
    uncounted: dict[str, int]
    candidates: list[CandidateKept]
