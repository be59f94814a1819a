"""The one path a request takes: classify → assign → decide → reserve → emit. Callables in, no I/O of its own.

What must never come in: a socket, a second way to choose, a memory of requests.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import getrandbits
from typing import Literal

from dispatcher.clock import Clock
from dispatcher.errors import HistoryUnavailable
from dispatcher.policy.classify import classify
from dispatcher.policy.decide import decide
from dispatcher.vocabulary.decision import Candidate, Decision, Reason, Selected
from dispatcher.vocabulary.event import Decided, Event
from dispatcher.vocabulary.fleet import Claim, FleetView, Lease, LeaseStatus, Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import Asked, Request
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.vocabulary.words import Seconds
from dispatcher.vocabulary.world import World

BACKOFF_MARGIN_SECONDS = 0.05  # a timer may fire a little early

Outcome = Literal["chosen", "degraded", "fallback", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What the desk may ask of the owner of places; handed in by the daemon, or three lambdas in a test.

    reserve: a lease, or why not in words; synchronous. ready and changed wait, at most until the moment given;
    changed is False when nothing changed until then, or at once when the daemon is leaving.
    """

    view: Callable[[], FleetView]
    reserve: Callable[[Place, int, tuple[Place, ...], str, float], Lease | str]
    end: Callable[[str, str], None]
    claim: Callable[[Claim], bool]
    unclaim: Callable[[str], None]
    ready: Callable[[str, float], Awaitable[LeaseStatus | None]]
    changed: Callable[[float], Awaitable[bool]]


class Desk:
    def __init__(
        self,
        *,
        fleet: Fleet,
        snapshot: Callable[[], Snapshot],
        profiles: Callable[[], Profiles],
        settings: Callable[[], Settings],
        clock: Clock,
        emit: Callable[[Event], None],
        record_lease: Callable[[Lease], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._snapshot = snapshot
        self._profiles = profiles
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._record_lease = record_lease

    def recommend(self, asked: Asked) -> Decision:
        """The same decision without a lease, an event or any other effect."""
        return self._decide(self._request(replace(asked, dry_run=True)), {}, self._settings())[0]

    async def select(self, asked: Asked) -> Selected:
        """One request, from its words to a promise. Never raises for want of a model: `decision.chosen` is None.

        Waits, at most `wait_seconds` and the caller's deadline in all: for leases that alone keep its last candidate
        out, and for *ready*. A place that fails to start is not tried again for this request: the next best is.
        """
        request = self._request(asked)
        until = request.at_seconds + _patience_seconds(request)
        settings = self._settings()  # also for its waits: a reload is for the requests that come after it
        lost: dict[Place, str] = {}
        while True:
            decision, lease, took = self._reserve(request, lost, settings)
            if decision.chosen is None and decision.wait_for is not None and _may_wait(request):
                decision, lease, took = await self._wait_for_leases(request, decision, lost, until, settings)
            if decision.chosen is None and decision.backoff_until_seconds is not None and _may_wait(request):
                decision, lease, took = await self._wait_for_backoff(request, decision, lost, until, took, settings)
            try:
                selected, status = await self._settled(request, decision, lease, took, until, again=bool(lost))
            except BaseException:  # cancelled above all: the caller left, and nobody else knows of this lease
                if lease is not None:
                    self._fleet.end(lease.id, "returned")
                raise
            if lease is None or status is None or status.ended not in ("start_failed", "withdrawn"):
                return _as_of(selected, status)
            lost[lease.place] = f"it was chosen and could not be started ({status.ended})"
            if self._clock.now_seconds() >= until:
                return replace(selected, lease=None, state=PlaceState.STOPPED, eta_seconds=None)

    async def _settled(
        self,
        request: Request,
        decision: Decision,
        lease: Lease | None,
        took: float,
        until_seconds: float,
        *,
        again: bool,
    ) -> tuple[Selected, LeaseStatus | None]:
        """Recorded, told, and waited for where its place is not ready; a status only when there was a wait."""
        selected = await self._promised(decision, lease)
        self._emit(
            Decided(
                at_seconds=self._clock.now_seconds(),
                decision=selected.decision,
                outcome=_outcome(selected.decision, again),
                decide_seconds=took,
                lease_id=lease.id if lease else None,
            )
        )
        if lease is None or selected.state is PlaceState.READY or not _may_wait(request):
            return selected, None
        return selected, await self._fleet.ready(lease.id, until_seconds)

    def _request(self, asked: Asked) -> Request:
        return classify(asked, request_id=f"d-{getrandbits(64):016x}", at_seconds=self._clock.now_seconds())

    def _decide(self, request: Request, lost: dict[Place, str], settings: Settings) -> tuple[Decision, float]:
        began = time.perf_counter()
        world = World(snapshot=self._snapshot(), fleet=self._fleet.view(), profiles=self._profiles(), lost=dict(lost))
        decision = decide(request, world, settings, self._clock.now_seconds())
        return decision, time.perf_counter() - began

    def _reserve(
        self, request: Request, lost: dict[Place, str], settings: Settings
    ) -> tuple[Decision, Lease | None, float]:
        """Decide and promise, with no await between; refused by the ledger, decide again without that place."""
        spent = 0.0
        refused = dict(lost)
        while True:
            decision, took = self._decide(request, refused, settings)
            spent += took
            chosen = decision.chosen
            if chosen is None or request.dry_run or not (request.start or _state_of(chosen)[0] is PlaceState.READY):
                return decision, None, spent
            lease = self._fleet.reserve(
                chosen.place,
                chosen.num_ctx,
                chosen.evicts,
                request.id,
                _lease_seconds(request, chosen, settings),
            )
            if isinstance(lease, Lease):
                return decision, lease, spent
            refused[chosen.place] = lease

    async def _wait_for_leases(
        self, request: Request, decision: Decision, lost: dict[Place, str], until_seconds: float, settings: Settings
    ) -> tuple[Decision, Lease | None, float]:
        """Only live leases keep its last candidate out: it waits, and their places take no new ones meanwhile.

        Bounded by the caller's patience and by the longest lease alive when it began, so that it cannot be starved by
        a stream of small requests, nor starve them for longer than that. A place whose lease has ended may look busy
        until its CPU is read again: the wait goes on, and looks again as often as places are looked at.
        """
        spent, lease = 0.0, None
        look_seconds = settings.lifecycle.reconcile_interval_seconds
        try:
            while decision.chosen is None:
                if (blocked := decision.wait_for) is not None and blocked.rejection is not None:
                    victims = blocked.rejection.blockers
                    until_seconds = min(until_seconds, self._longest_lease_seconds(victims, settings))
                    self._fleet.claim(
                        Claim(place=blocked.place, victims=victims, decision_id=request.id, until_seconds=until_seconds)
                    )
                pause_until = min(until_seconds, self._clock.now_seconds() + look_seconds)
                waited = await self._fleet.changed(pause_until)
                decision, lease, took = self._reserve(request, lost, settings)
                spent += took
                now = self._clock.now_seconds()
                if now >= until_seconds or (not waited and now < pause_until):  # the latter: the daemon is leaving
                    break
            return decision, lease, spent
        finally:
            self._fleet.unclaim(request.id)

    async def _wait_for_backoff(
        self,
        request: Request,
        decision: Decision,
        lost: dict[Place, str],
        until_seconds: float,
        spent: float,
        settings: Settings,
    ) -> tuple[Decision, Lease | None, float]:
        """The last candidate's start failed a moment ago, and may be tried again within the caller's patience: it is,
        and the answer says that it waited. Not at all, when the backoff lasts longer than that."""
        began, lease = self._clock.now_seconds(), None
        while (ends := decision.backoff_until_seconds) is not None and ends < until_seconds:
            waited = await self._fleet.changed(ends + BACKOFF_MARGIN_SECONDS)
            decision, lease, took = self._reserve(request, lost, settings)
            spent += took
            if not waited and self._clock.now_seconds() < ends:  # the daemon is leaving
                break
        if self._clock.now_seconds() > began:
            seconds = Seconds(self._clock.now_seconds() - began)
            told = Reason(code="start_backoff", detail=f"waited {seconds} for the next try after a failed start")
            decision = replace(decision, reasons=(*decision.reasons, told))
        return decision, lease, spent

    def _longest_lease_seconds(self, places: tuple[Place, ...], settings: Settings) -> float:
        """The end of the longest lease alive now; one whose time has not begun may last the longest allowed."""
        now, longest = self._clock.now_seconds(), settings.lifecycle.lease_max_seconds
        ends = [
            view.leased_until_seconds if view.leased_until_seconds is not None else now + longest
            for view in self._fleet.view().places
            if view.place in places and view.leases
        ]
        return max(ends, default=now) + 1.0  # its end is acted on within the same second

    async def _promised(self, decision: Decision, lease: Lease | None) -> Selected:
        """Durable before it is handed out; when the disk fails it is granted from memory, and `reasons` says so."""
        chosen = decision.chosen
        if chosen is None:
            return Selected(decision=decision)
        state, eta = _state_of(chosen)
        if lease is None:
            if chosen.state is not PlaceState.READY:
                state = chosen.state
            elif state is not PlaceState.READY and not decision.request.start:
                state = PlaceState.STOPPED  # it serves, with too little context, and nobody will reload it
            return Selected(decision=decision, state=state, eta_seconds=eta, endpoint=chosen.endpoint)
        durable = True
        try:
            await self._record_lease(lease)
        except HistoryUnavailable as trouble:
            durable = False
            told = Reason(code="not_durable", detail=f"the lease is granted from memory only: {trouble}")
            decision = replace(decision, reasons=(*decision.reasons, told))
        return Selected(
            decision=decision, lease=lease, state=state, eta_seconds=eta, endpoint=chosen.endpoint, durable=durable
        )


def _patience_seconds(request: Request) -> float:
    if request.deadline_seconds is None:
        return request.wait_seconds
    return min(request.wait_seconds, request.deadline_seconds)


def _may_wait(request: Request) -> bool:
    return request.start and not request.dry_run and request.wait_seconds > 0


def _lease_seconds(request: Request, chosen: Candidate, settings: Settings) -> float:
    """What was asked, else max(60 s, 2 × predicted total); at most 900 s."""
    rules = settings.lifecycle
    if request.lease_seconds is not None:
        return min(request.lease_seconds, rules.lease_max_seconds)
    predicted = chosen.prediction.total_seconds if chosen.prediction else 0.0
    return min(rules.lease_max_seconds, max(rules.lease_min_seconds, 2 * predicted))


def _state_of(chosen: Candidate) -> tuple[PlaceState, float | None]:
    """As promised: a place that will be reloaded or started is starting, until the owner says ready."""
    if chosen.state is PlaceState.READY and chosen.prediction is not None and not chosen.prediction.load_seconds:
        return PlaceState.READY, 0.0
    if chosen.prediction is None:
        return PlaceState.STARTING, None
    prediction = chosen.prediction
    return PlaceState.STARTING, prediction.evict_seconds + prediction.load_seconds + prediction.wait_seconds


def _as_of(selected: Selected, status: LeaseStatus | None) -> Selected:
    """With what the wait has shown: its place's state, and the moment its lease runs to."""
    if status is None:
        return selected
    return replace(
        selected,
        lease=status.lease if status.ended is None else None,
        state=status.state,
        eta_seconds=status.eta_seconds,
        endpoint=status.endpoint or selected.endpoint,
    )


def _outcome(decision: Decision, again: bool) -> Outcome:
    if decision.chosen is None:
        return "none"
    if again:
        return "fallback"
    return "degraded" if decision.degraded else "chosen"
