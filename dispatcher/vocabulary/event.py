"""Every fact leaves as one of these, once, through one `emit` (law 3). Exporter, history and page read this stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dispatcher.vocabulary.action import Action
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.experiment import ArmObserved, ExperimentTurned, Shadowed
from dispatcher.vocabulary.fleet import Lease, Place
from dispatcher.vocabulary.relay import Cause
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.vocabulary.status import STATUSES as STATUSES
from dispatcher.vocabulary.status import Status as Status

GONE = "gone"  # what a place has turned to that is no longer declared: no state, it is in the fleet no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """outcome: chosen | degraded | fallback | none (the label of dispatcher_decisions_total)."""

    at_seconds: float
    decision: Decision
    outcome: Literal["chosen", "degraded", "fallback", "none"]
    decide_seconds: float
    lease_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """what: granted | ready | renewed | ended. cause of an end: outcome, returned, expired, start_failed, withdrawn."""

    at_seconds: float
    lease: Lease
    what: Literal["granted", "ready", "renewed", "ended"]
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """One attempt of the gateway begins at one place. attempt: 1 for the first of its request. before, cause: where the
    one before it failed, and of what; None and "" for the first."""

    at_seconds: float
    decision_id: str
    place: Place
    attempt: int
    before: Place | None = None
    cause: Cause | Literal[""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """One attempt of the gateway ended badly. fails_place: it tells against the place, and is what is learned of it,
    whatever becomes of the request; else against the request."""

    at_seconds: float
    decision_id: str
    place: Place
    task: str
    cause: Cause
    seconds: float
    fails_place: bool
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A request that may be answered from the cache was, or was not."""

    at_seconds: float
    model: str
    hit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """One request's end, reported by a caller or seen by the gateway.

    duration_seconds: request to last byte. timings: the engine's own durations, where the surface had them.
    relayed: the gateway's own: one per request, after a Failed for each attempt that ended badly. It is then of the
    last attempt; with no place, no model server was asked, or none of ours: from the cache, or refused.
    """

    at_seconds: float
    decision_id: str
    model: str
    place: Place | None
    task: str
    agent: str
    status: Status
    duration_seconds: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    quality: float | None = None  # 0..10
    judged_by: Literal["caller", "answer"] | None = None  # whose word the quality is: answer: what it showed of itself
    predicted_seconds: float | None = None
    timings: Timings | None = None
    first_token_seconds: float | None = None  # from sending to the first content, as the gateway saw it
    queue_seconds: float | None = None  # waited for a slot at the gateway
    relayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """One action's end. seconds: how long it took; a start's load_seconds is the load alone."""

    at_seconds: float
    action: Action
    ok: bool
    seconds: float
    load_seconds: float | None = None
    because: str = ""  # of a failure
    error_type: str = ""  # a word of the closed vocabulary of dispatcher_errors_total


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """Something changed its state; subject names which one of its kind (`what`)."""

    at_seconds: float
    what: Literal["place", "latch", "source", "breaker", "provider", "history", "profile"]
    subject: str
    before: str
    after: str
    because: str = ""
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One poll's end. failures: source → reason; missed: ticks that fell out since the last."""

    at_seconds: float
    snapshot: Snapshot
    poll_seconds: float
    failures: Mapping[str, str] = field(default_factory=dict)
    missed_ticks: int = 0
    queries: int = 0  # HTTP queries this poll made


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """changed: paths of the settings that are new. waiting: of those that differ in the file and need a restart.
    because: why it was refused, and then the settings are those of before."""

    at_seconds: float
    ok: bool
    because: str = ""
    changed: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Erred:
    """Something went wrong that no other event tells. error_type: as of Acted. Counted, and not kept: the history
    would only write of its own trouble."""

    at_seconds: float
    error_type: str
    count: int = 1


Event = (
    Decided
    | Leased
    | Relayed
    | Failed
    | Cached
    | Completed
    | Acted
    | Turned
    | Sampled
    | Reloaded
    | Erred
    | ArmObserved
    | ExperimentTurned
    | Shadowed
)
