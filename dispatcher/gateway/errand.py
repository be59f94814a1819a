"""One relayed request while it is on its way: what was tried, what came of it, and what its end is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from dispatcher.gateway.answering import Answering
from dispatcher.gateway.attempt import Ended
from dispatcher.vocabulary.decision import Decision, Prediction, Selected
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Completed, Status
from dispatcher.vocabulary.fleet import Lease, Place
from dispatcher.vocabulary.relay import Arrived, Cause, Headers
from dispatcher.vocabulary.request import Request
from dispatcher.wire.surface import AUTO, Told

OF_TIME: tuple[Cause, ...] = ("silent", "stalled")
AS_SAID: tuple[Cause, ...] = ("caller_error", "wrong_option", "context_exceeded", "not_found", "rate_limited")
NEVER_ATTEMPTED: tuple[Cause, ...] = ("not_ready", "no_slot")
OUTSIDE = "last-resort"
REHEARSAL = (b"x-dispatcher-rehearsal", b"true")  # a simulated model answers
MAX_TOLD = 8  # failed attempts and full queues, in the words of one refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A place that is ready for this request, and the promise that it stays."""

    selected: Selected
    lease: Lease
    origin: str

    @property
    def place(self) -> Place:
        return self.lease.place

    @property
    def decision(self) -> Decision:
        return self.selected.decision

    @property
    def prediction(self) -> Prediction | None:
        return None if self.decision.chosen is None else self.decision.chosen.prediction

    @property
    def work_seconds(self) -> float:
        """Predicted, of the model alone: once it is ready and has a free slot."""
        prediction = self.prediction
        return 1.0 if prediction is None else prediction.first_token_seconds + prediction.decode_seconds


@dataclass(slots=True, kw_only=True)
class Errand:
    """Mutable; one per request, in one task. named: the model it is for, while there is something left of it; None for
    any. lost: where it is not to be tried again, and why in words."""

    arrived: Arrived
    told: Told
    named: str | None
    answering: Answering
    began_seconds: float
    until_seconds: float | None  # the caller's deadline
    lost: dict[Place, str] = field(default_factory=dict)
    attempts: int = 0
    decision: Decision | None = None
    given: Given | None = None
    ended: Ended | None = None
    refused: Decision | None = None  # the last that chose nothing
    queue_retry_seconds: float | None = None  # a queue was full, or too long
    queue_seconds: float = 0.0  # waited for a slot, in all
    moved_from: Place | None = None  # where the last attempt failed, and of what
    moved_for: Cause | None = None
    repeated: set[Place] = field(default_factory=set)  # where it was tried a second time
    answered_by: Place | None = None  # whose answer it gets; an attempt still under way elsewhere is in vain
    outside: str | None = None  # the last resort, by its model, once it is asked: one of the attempts
    outside_answered: bool = False
    kept_model: str | None = None  # whose answer it was given from the cache
    awaits: str = ""  # its turn, an answer: what it waits for now; empty: a model that is ready
    story: list[str] = field(default_factory=list)

    def tells(self, where: Place, why: str) -> None:
        if len(self.story) < MAX_TOLD:
            self.story.append(f"{where}: {why}")

    @property
    def latest_seconds(self) -> float:
        """Nothing is waited for beyond it."""
        return inf if self.until_seconds is None else self.until_seconds

    def gives_up_on(self, place: Place, cause: Cause, why: str, in_full: str | None = None) -> None:
        """For this request; the next choice is made without it. in_full: for its client; why: for everybody."""
        attempted = "" if cause in NEVER_ATTEMPTED else "an attempt of this request just failed here: "
        self.lost[place] = f"{attempted}{cause}: {why}"
        self.moved_from, self.moved_for = place, cause
        self.tells(place, why if in_full is None else in_full)

    @property
    def request(self) -> Request | None:
        return None if self.decision is None else self.decision.request

    @property
    def last_decision_id(self) -> str:
        """Of the one that stands, else of the last that chose nothing."""
        decision = self.decision or self.refused
        return "" if decision is None else decision.id

    @property
    def task(self) -> str:
        return "general" if self.request is None else self.request.task

    @property
    def attempts_here(self) -> int:
        """Of those, at places of ours."""
        return self.attempts if self.outside is None else self.attempts - 1

    @property
    def is_unknown(self) -> bool:
        """Nothing was chosen because nothing has the name it asked for."""
        if self.refused is None or self.told.asked.model == AUTO:
            return False
        return all(one.rejection is not None and one.rejection.rule == "not_allowed" for one in self.refused.candidates)

    def headers(self, *, cache: str | None = None, of: Decision | None = None) -> Headers:
        """Of the answer; what is told of the decision that stands, else of the last that chose nothing. of: of that one
        instead."""
        told: Headers = []
        if (decision := of or self.decision or self.refused) is not None:
            told.append((b"x-dispatcher-decision", decision.id.encode()))
            told.append((b"x-dispatcher-degraded", b"true" if decision.degraded else b"false"))
        if self.given is not None:
            told.append((b"x-dispatcher-model", _in_header(self.given.place.model)))
        told.append((b"x-dispatcher-attempts", str(self.attempts).encode()))
        if cache is not None:
            told.append((b"x-dispatcher-cache", cache.encode()))
        return told + self.marks()

    def marks(self) -> Headers:
        """What is said of every answer, a refusal too, while the models are simulated."""
        decision = self.decision or self.refused
        return [REHEARSAL] if decision is not None and decision.rehearsal else []

    def headers_of_kept(self, place: Place) -> Headers:
        """Of an answer from the cache: nothing was decided. place: whose it was."""
        return [
            (b"x-dispatcher-model", _in_header(place.model)),
            (b"x-dispatcher-attempts", b"0"),
            (b"x-dispatcher-cache", b"hit"),
            *([REHEARSAL] if place.server.startswith("rehearsal:") else []),
        ]

    def headers_outside(self) -> Headers:
        """Of an answer of the last resort: the decision is the one that found nothing here, or nothing that worked. No
        rehearsal, whatever is rehearsed here: that model is real."""
        told: Headers = []
        if (decision := self.decision or self.refused) is not None:
            told.append((b"x-dispatcher-decision", decision.id.encode()))
            told.append((b"x-dispatcher-degraded", b"true" if decision.degraded else b"false"))
        told.append((b"x-dispatcher-model", _in_header(self.outside or OUTSIDE)))
        told.append((b"x-dispatcher-attempts", str(self.attempts).encode()))
        return told

    def completed(self, status: Status, now_seconds: float) -> Completed:
        """The one event of its end. What was answered from outside, or from the cache, is no place's doing."""
        given, ended = None if self.outside_answered else self.given, self.ended
        model = self.outside if self.outside_answered else self.kept_model
        timings = None if ended is None or status != "ok" else ended.timings
        durations = timings is not None and timings.total_seconds is not None
        prediction = None if given is None else given.prediction
        quality = None if ended is None or status != "ok" or given is None else ended.quality
        return Completed(
            at_seconds=now_seconds,
            decision_id="" if self.decision is None else self.decision.id,
            model=(model or self.told.asked.model) if given is None else given.place.model,
            place=None if given is None else given.place,
            task=self.task,
            agent=self.told.asked.agent,
            status=status,
            duration_seconds=now_seconds - self.began_seconds if ended is None else ended.seconds,
            prompt_tokens=None if timings is None else timings.prompt_tokens,
            output_tokens=None if timings is None else timings.output_tokens,
            predicted_seconds=None if prediction is None else _predicted_seconds(prediction, timings),
            timings=timings if durations else None,
            first_token_seconds=None if ended is None else ended.first_token_seconds,
            queue_seconds=self.queue_seconds,
            relayed=True,
            quality=quality,
            judged_by=None if quality is None else "answer",
        )


def _predicted_seconds(prediction: Prediction, timings: Timings | None) -> float:
    """Of the attempt, for as many tokens as came: how long an answer is was not what was predicted."""
    tokens = None if timings is None else timings.output_tokens
    if not tokens:
        return prediction.first_token_seconds + prediction.decode_seconds
    return prediction.first_token_seconds + (tokens - 1) / prediction.tokens_per_second


def unread(began_seconds: float, now_seconds: float) -> Completed:
    """The one event of a request whose body or wishes could not be read: nobody knows what it was for."""
    return Completed(
        at_seconds=now_seconds,
        decision_id="",
        model="_other",
        place=None,
        task="general",
        agent="",
        status="error",
        duration_seconds=now_seconds - began_seconds,
        relayed=True,
    )


def _in_header(name: str) -> bytes:
    return name.encode("latin-1", "replace")
