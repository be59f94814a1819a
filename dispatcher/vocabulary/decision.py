"""An answer to "which model should do this, right now, here?", with every number it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dispatcher.vocabulary.fleet import Lease, Place, PlaceState
from dispatcher.vocabulary.preference_settings import NO_OPTIONS, GenerationOptions
from dispatcher.vocabulary.request import Request
from dispatcher.vocabulary.signal import UnknownReason
from dispatcher.vocabulary.words import Seconds

Rule = Literal[
    "not_allowed",
    "lacks_capability",
    "context_too_long",
    "unavailable",
    "quarantined",
    "breaker_open",
    "memory_short",
    "cpu_busy",
    "pressure_high",
    "signal_unknown",
    "too_slow_for_deadline",
    "reservation_lost",
]
Verdict = Literal["chosen", "fallback", "rejected"]
Confidence = Literal["high", "medium", "low"]
MAX_CANDIDATES = 32  # stored whole; the rest is counted by rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a place will not do, in the words the user will read. The sentence is made when read, not when refused."""

    place: Place
    rule: Rule
    template: str  # str.format template of `facts`
    facts: tuple[object, ...] = ()
    leases_only: bool = False  # only live leases are in the way: the request may wait for them
    latch_only: bool = False  # there is enough, and has to stay for a while: it was short a moment ago
    blockers: tuple[Place, ...] = ()  # the leased places in the way
    until_seconds: float | None = None  # in its way is only what ends then: a failed start's backoff, others' dwell
    passing: bool = False  # what is in its way ends by itself, nobody knows when: others' dwell, work, leases

    @property
    def because(self) -> str:
        return self.template.format(*self.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How long it would take, all seconds. source: history | prometheus | calibrated | prior."""

    wait_seconds: float
    evict_seconds: float  # stopping what it evicts, and what they would cost if wanted back
    load_seconds: float
    first_token_seconds: float  # prefill and one token, after wait and load
    decode_seconds: float
    tokens_per_second: float
    source: str
    samples: int = 0
    spread_ratio: float = 0.5  # half-width of the likely range, relative to total

    @property
    def total_seconds(self) -> float:
        return (
            self.wait_seconds + self.evict_seconds + self.load_seconds + self.first_token_seconds + self.decode_seconds
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Each 0..1."""

    capability: float
    performance: float
    health: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One place and what became of it."""

    place: Place
    verdict: Verdict
    state: PlaceState
    endpoint: str | None
    num_ctx: int
    need_bytes: int | None = None
    free_bytes: int | None = None  # what filters compared it with: what is left, and what may be evicted
    rejection: Rejection | None = None
    evicts: tuple[Place, ...] = ()
    score: float | None = None
    scores: Scores | None = None
    prediction: Prediction | None = None

    @property
    def because(self) -> str:
        if self.rejection is not None:
            return self.rejection.because
        assert self.prediction is not None
        gone = f", evicts {', '.join(str(place) for place in self.evicts)}" if self.evicts else ""
        return f"{self.state.value}{gone}, {Seconds(self.prediction.total_seconds)} predicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Something a person should know about a decision. code: an UnknownReason or a fixed word; detail: words."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The whole of it. `chosen` None: no usable model, and every candidate says why."""

    request: Request
    at_seconds: float
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]  # chosen first, then fallbacks in order, then the rejected; at most 32
    uncounted: tuple[tuple[str, int], ...] = ()  # rule → how many candidates are not among `candidates`
    wait_for: Candidate | None = None  # rejected only because of live leases: worth waiting for
    pause_until_seconds: float | None = None  # nothing chosen, and the soonest end of a backoff or dwell in the way
    reasons: tuple[Reason, ...] = ()
    degraded: bool = False
    confidence: Confidence = "high"
    snapshot_number: int = 0
    snapshot_age_seconds: float | None = None
    snapshot_source: str = "none"
    policy: str = "default"
    arm: str | None = None
    rehearsal: bool = False
    retry_after_seconds: int = 5
    sentence: str = ""
    options: GenerationOptions = NO_OPTIONS  # how the chosen model is to write, by the preferences

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def fallbacks(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self.candidates if candidate.verdict == "fallback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What the desk hands back: the decision, the promise made on it, and how far its place has come.

    lease None: a dry run, nothing chosen, or `start: false` at a place that is not ready. eta_seconds: until ready,
    0 when it is, None when unknown.
    """

    decision: Decision
    lease: Lease | None = None
    state: PlaceState = PlaceState.STOPPED
    eta_seconds: float | None = None
    endpoint: str | None = None
    durable: bool = True  # False: the lease is granted from memory only; the disk refused, or nobody asked for more


__all__ = [
    "MAX_CANDIDATES",
    "Candidate",
    "Confidence",
    "Decision",
    "Prediction",
    "Reason",
    "Rejection",
    "Rule",
    "Scores",
    "Selected",
    "UnknownReason",
    "Verdict",
]
