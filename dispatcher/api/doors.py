"""What the API is given: plain callables, made by daemon.py. It knows no other room that acts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from dispatcher.api.events import Feed
from dispatcher.api.recent import Recent
from dispatcher.clock import Clock
from dispatcher.errors import NotFound
from dispatcher.vocabulary.decision import Decision, Selected
from dispatcher.vocabulary.fleet import FleetView, LeaseStatus
from dispatcher.vocabulary.profile import Profiles, Record
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.relay import Arrived, Client
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import LimitSettings, Settings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.wire.experiments import NO_EXPERIMENTS, Experiments, ExperimentTold
from dispatcher.wire.select import OutcomeReport
from dispatcher.wire.view_shapes import Check, Readiness


async def _not_here(_: object) -> ExperimentTold:
    raise NotFound("there are no experiments here")


Relay = Callable[[Arrived, Client], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Everything that is not async answers from memory, at once.

    select: waits up to its own wait_seconds, is cancelled when its client leaves, and never raises for want of a model
    (`decision.chosen` None). recommend: no lease, no effect. renew_lease: NotFound, NotNow. end_lease: knows no error,
    giving back twice is fine. record_outcome: returns when it is durable; NotFound, HistoryUnavailable.
    decisions(limit, model, since_seconds) and decision(id): JSON documents as wire.decision made them, newest first;
    HistoryUnavailable. act(model, start|stop|pin|unpin|forget): the action as a document; NotFound, NotNow.
    exposition(Accept header): the bytes and their content type. heartbeat_age_seconds: since the event loop last beat,
    and nothing else. feed: what `emit` tells, for GET /events.
    recent: the newest of it, for the page.
    erred: told the word of errors.error_type_of for each fault that a request met. relay: one request of a model's
    own surfaces, answered in all its ways through the client it is given; None: nothing is relayed. lines: its queues.
    start_experiment(document): durable when it returns; AskInvalid, NotNow, HistoryUnavailable. stop_experiment(id):
    NotFound, HistoryUnavailable.
    """

    select: Callable[[Asked], Awaitable[Selected]]
    recommend: Callable[[Asked], Decision]
    snapshot: Callable[[], Snapshot]
    fleet: Callable[[], FleetView]
    profiles: Callable[[], Profiles]
    settings: Callable[[], Settings]
    lease: Callable[[str], LeaseStatus | None]
    renew_lease: Callable[[str], Awaitable[LeaseStatus]]
    end_lease: Callable[[str], None]
    record_outcome: Callable[[OutcomeReport], Awaitable[None]]
    decisions: Callable[[int, str | None, float | None], Awaitable[list[bytes]]]
    decision: Callable[[str], Awaitable[bytes | None]]
    act: Callable[[str, str], Awaitable[dict[str, Any]]]
    exposition: Callable[[str | None], tuple[bytes, str]]
    readiness: Callable[[], Readiness]
    heartbeat_age_seconds: Callable[[], float]
    clock: Clock
    draining: Callable[[], bool]
    erred: Callable[[str], None] = lambda error_type: None
    feed: Feed = field(default_factory=lambda: Feed(LimitSettings))
    recent: Recent = field(default_factory=Recent)
    records: Callable[[], tuple[Record, ...]] = tuple
    relay: Relay | None = None
    lines: Callable[[], tuple[Line, ...]] = tuple
    experiments: Callable[[], Experiments] = lambda: NO_EXPERIMENTS
    start_experiment: Callable[[object], Awaitable[ExperimentTold]] = _not_here
    stop_experiment: Callable[[str], Awaitable[ExperimentTold]] = _not_here


__all__ = ["Check", "Doors", "OutcomeReport", "Readiness"]
