"""The one path a request takes: classify → assign → decide → reserve → emit. Callables in, no I/O of its own.

What must never come in: a socket, a second way to choose, a memory of requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from random import getrandbits
from types import MappingProxyType
from typing import Literal, Protocol

from dispatcher.clock import Clock
from dispatcher.errors import HistoryUnavailable
from dispatcher.experiments.assign import Assigned
from dispatcher.experiments.partaking import Experiments, assigned_by, in_arm
from dispatcher.policy.classify import classify
from dispatcher.policy.decide import decide
from dispatcher.policy.prefer import completed
from dispatcher.vocabulary.decision import Candidate, Decision, Reason, Selected
from dispatcher.vocabulary.event import Decided, Event
from dispatcher.vocabulary.fleet import Claim, FleetView, Lease, LeaseStatus, Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import Asked, Request
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.vocabulary.words import Seconds
from dispatcher.vocabulary.world import Lost, World

BACKOFF_MARGIN_SECONDS = 0.05  # a timer may fire a little early
MAX_WAITING = 1024  # requests that wait for leases or a backoff, in all: each of them decides again and again
WAKE_SECONDS = 0.1  # one that waits, and whose turn it is not, decides again at most so often …
WAKES_PER_SECOND = 1000  # … and all of them together, too

Outcome = Literal["chosen", "degraded", "fallback", "none"]
NOWHERE: Mapping[Place, str] = MappingProxyType({})


class Reserve(Protocol):
    """A lease, or why not in words; synchronous. durable False: nobody writes it down."""

    def __call__(
        self,
        *,
        place: Place,
        num_ctx: int,
        evicts: tuple[Place, ...],
        decision_id: str,
        seconds: float,
        durable: bool,
    ) -> Lease | str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What the desk may ask of the owner of places; handed in by the daemon, or three lambdas in a test.

    ready and changed wait, at most until the moment given; changed is False when nothing changed until then, or at once
    when the daemon is leaving. claim: whether it is this request's turn.
    """

    view: Callable[[], FleetView]
    reserve: Reserve
    end: Callable[[str, str], None]
    claim: Callable[[Claim], bool]
    unclaim: Callable[[str], None]
    ready: Callable[[str, float], Awaitable[LeaseStatus | None]]
    changed: Callable[[float], Awaitable[bool]]


@dataclass(slots=True, kw_only=True)
class _Errand:
    """One request on its way: the settings it began with (a reload is for those that come after it), how long it may
    wait, and the places that are out for it. before: the id of an earlier decision on it."""

    request: Request
    settings: Settings
    assigned: Assigned | None
    before: str
    until_seconds: float
    durable: bool
    again: bool
    lost: dict[Place, Lost]
    world: World | None = None


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
        experiments: Experiments | None = None,
    ) -> None:
        self._fleet = fleet
        self._snapshot = snapshot
        self._profiles = profiles
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._record_lease = record_lease
        self._experiments = experiments
        self._waiting = 0

    def recommend(self, asked: Asked) -> Decision:
        """The same decision without a lease, an event or any other effect. Of an experiment: in the agent's arm; where
        no agent is named, chance would have it, and it is decided as without one."""
        request = self._request(replace(asked, dry_run=True))
        assigned = assigned_by(self._experiments, request, "") if request.agent else None
        settings = self._settings() if assigned is None else assigned.settings
        return in_arm(self._decide(request, {}, settings)[0], assigned)

    async def select(
        self, asked: Asked, *, without: Mapping[Place, str] = NOWHERE, again: bool = False, durable: bool = True
    ) -> Selected:
        """One request, from its words to a promise. Never raises for want of a model: `decision.chosen` is None.

        Waits, at most `wait_seconds` and the caller's deadline in all: for leases that alone keep its last candidate
        out, and for *ready*. A place that fails to start is not tried again for this request: the next best is.
        without: where it is not to go, and why in words: not chosen either. again: the same request was
        decided before, as it is wherever there is something to do without. durable False: the lease is kept in memory
        only, for a caller that does not outlive this process.
        """
        request = self._request(asked)
        assigned = assigned_by(self._experiments, request, asked.decided_before)
        errand = _Errand(
            request=request,
            settings=self._settings() if assigned is None else assigned.settings,
            assigned=assigned,
            before=asked.decided_before,
            until_seconds=request.at_seconds + _patience_seconds(request),
            durable=durable,
            again=again,
            lost={place: Lost(rule="unavailable", because=why) for place, why in without.items()},
        )
        while True:
            decision, lease, took = self._reserve(errand)
            if decision.chosen is None and _may_wait(request):
                decision, lease, took = await self._wait(errand, decision, took)
            try:
                selected, status = await self._settled(errand, decision, lease, took)
            except BaseException:  # cancelled above all: the caller left, and nobody else knows of this lease
                if lease is not None:
                    self._fleet.end(lease.id, "returned")
                raise
            if lease is None or status is None or status.ended not in ("start_failed", "withdrawn"):
                return _as_of(selected, status)
            errand.lost[lease.place] = Lost(because=f"it was chosen and could not be started ({status.ended})")
            if self._clock.now_seconds() >= errand.until_seconds:
                return replace(selected, lease=None, state=PlaceState.STOPPED, eta_seconds=None)

    async def _settled(
        self, errand: _Errand, decision: Decision, lease: Lease | None, took: float
    ) -> tuple[Selected, LeaseStatus | None]:
        """Recorded, told, and waited for where its place is not ready; a status only when there was a wait."""
        self._tell_experiments(errand, decision, lease)  # first: between this and the lease nobody else gets one
        selected = await self._promised(decision, lease)
        self._emit(
            Decided(
                at_seconds=self._clock.now_seconds(),
                decision=selected.decision,
                outcome=_outcome(selected.decision, again=errand.again or bool(errand.lost)),
                decide_seconds=took,
                lease_id=lease.id if lease else None,
            )
        )
        if lease is None or selected.state is PlaceState.READY or not _may_wait(errand.request):
            return selected, None
        return selected, await self._fleet.ready(lease.id, errand.until_seconds)

    def _tell_experiments(self, errand: _Errand, decision: Decision, lease: Lease | None) -> None:
        experiments, world = self._experiments, errand.world
        if experiments is None or not experiments.running or world is None or errand.request.dry_run:
            return
        experiments.decided(
            decision, errand.assigned, world, leased=lease is not None, final=errand.durable, before=errand.before
        )

    def _request(self, asked: Asked) -> Request:
        asked = completed(asked, self._settings().preferences)
        return classify(asked, request_id=f"d-{getrandbits(64):016x}", at_seconds=self._clock.now_seconds())

    def _decide(self, request: Request, lost: dict[Place, Lost], settings: Settings) -> tuple[Decision, float, World]:
        began = time.perf_counter()
        world = World(snapshot=self._snapshot(), fleet=self._fleet.view(), profiles=self._profiles(), lost=dict(lost))
        decision = decide(request, world, settings, self._clock.now_seconds())
        return decision, time.perf_counter() - began, world

    def _reserve(self, errand: _Errand) -> tuple[Decision, Lease | None, float]:
        """Decide and promise, with no await between; refused by the ledger, decide again without that place."""
        spent, request = 0.0, errand.request
        lost = dict(errand.lost)
        while True:
            decision, took, errand.world = self._decide(request, lost, errand.settings)
            decision = in_arm(decision, errand.assigned)
            spent += took
            chosen = decision.chosen
            if chosen is None or request.dry_run or not (request.start or _state_of(chosen)[0] is PlaceState.READY):
                return decision, None, spent
            lease = self._fleet.reserve(
                place=chosen.place,
                num_ctx=chosen.num_ctx,
                evicts=chosen.evicts,
                decision_id=request.id,
                seconds=_lease_seconds(request, chosen, errand.settings),
                durable=errand.durable,
            )
            if isinstance(lease, Lease):
                return decision, lease, spent
            lost[chosen.place] = Lost(because=lease)

    async def _wait(self, errand: _Errand, decision: Decision, spent: float) -> tuple[Decision, Lease | None, float]:
        """For leases, and then for a backoff or a dwell, where that may help and not too many wait already."""
        lease: Lease | None = None
        if decision.wait_for is None and decision.pause_until_seconds is None:
            return decision, lease, spent
        if self._waiting >= MAX_WAITING:
            return _crowded(decision), lease, spent
        self._waiting += 1
        try:
            if decision.wait_for is not None:
                decision, lease, spent = await self._wait_for_leases(errand, decision)
            if decision.chosen is None and decision.pause_until_seconds is not None:
                decision, lease, spent = await self._wait_for_pause(errand, decision, spent)
            return decision, lease, spent
        finally:
            self._waiting -= 1

    async def _wait_for_leases(self, errand: _Errand, decision: Decision) -> tuple[Decision, Lease | None, float]:
        """Only live leases keep its last candidate out: it waits, and their places take no new ones meanwhile.

        Bounded by the caller's patience and by the longest lease alive when it began, so that it cannot be starved by
        a stream of small requests, nor starve them for longer than that. A place whose lease has ended may look busy
        until its CPU is read again: the wait goes on, and looks again as often as places are looked at.
        """
        spent, lease, its_turn = 0.0, None, False
        settings, until_seconds = errand.settings, errand.until_seconds
        look_seconds = settings.lifecycle.reconcile_interval_seconds
        decision_id = errand.request.id
        try:
            while decision.chosen is None:
                if (blocked := decision.wait_for) is not None and blocked.rejection is not None:
                    victims = blocked.rejection.blockers
                    until_seconds = min(until_seconds, self._longest_lease_seconds(victims, settings))
                    its_turn = self._fleet.claim(
                        Claim(
                            place=blocked.place, victims=victims, decision_id=decision_id, until_seconds=until_seconds
                        )
                    )
                pause_until = min(until_seconds, self._clock.now_seconds() + look_seconds)
                waited = await self._woken(pause_until, its_turn=its_turn)
                decision, lease, took = self._reserve(errand)
                spent += took
                now = self._clock.now_seconds()
                if now >= until_seconds or (not waited and now < pause_until):  # the latter: the daemon is leaving
                    break
            return decision, lease, spent
        finally:
            self._fleet.unclaim(decision_id)

    async def _woken(self, until_seconds: float, *, its_turn: bool) -> bool:
        """As Fleet.changed; but hundreds that wait do not all decide again at every change: who is not next rests for
        its share of what all of them may, since it last decided."""
        rested_at = self._clock.now_seconds() + max(WAKE_SECONDS, self._waiting / WAKES_PER_SECOND)
        waited = await self._fleet.changed(until_seconds)
        rest_seconds = min(rested_at, until_seconds) - self._clock.now_seconds()
        if waited and not its_turn and rest_seconds > 0:
            await asyncio.sleep(rest_seconds)
        return waited

    async def _wait_for_pause(
        self, errand: _Errand, decision: Decision, spent: float
    ) -> tuple[Decision, Lease | None, float]:
        """The last candidate's start failed a moment ago, or who would make room for it started a moment ago, and that
        ends within the caller's patience: it is tried again then, and the answer says that it waited. Not at all, when
        it lasts longer than that."""
        began, lease, backoff = self._clock.now_seconds(), None, _is_backoff(decision)
        while (ends := decision.pause_until_seconds) is not None and ends < errand.until_seconds:
            waited = await self._woken(ends + BACKOFF_MARGIN_SECONDS, its_turn=False)
            decision, lease, took = self._reserve(errand)
            spent += took
            if not waited and self._clock.now_seconds() < ends:  # the daemon is leaving
                break
        if self._clock.now_seconds() > began:
            seconds = Seconds(self._clock.now_seconds() - began)
            told = Reason(code="dwell", detail=f"waited {seconds} for a model that had just been started")
            if backoff:
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
        durable = lease.durable
        try:
            if durable:
                await self._record_lease(lease)
        except HistoryUnavailable as trouble:
            durable = False
            told = Reason(code="not_durable", detail=f"the lease is granted from memory only: {trouble}")
            decision = replace(decision, reasons=(*decision.reasons, told))
        return Selected(
            decision=decision, lease=lease, state=state, eta_seconds=eta, endpoint=chosen.endpoint, durable=durable
        )


def _is_backoff(decision: Decision) -> bool:
    """Else what ends is the dwell of those who hold the memory."""
    ends = (one.rejection for one in decision.candidates if one.rejection and one.rejection.until_seconds is not None)
    return any(rejection.rule == "unavailable" for rejection in ends)


def _crowded(decision: Decision) -> Decision:
    """It would wait, were there not so many that do: refused at once, with the reason in words."""
    told = f"{MAX_WAITING:,} requests wait already, as many as may; ask again in {decision.retry_after_seconds} s"
    return replace(
        decision,
        reasons=(*decision.reasons, Reason(code="too_many_waiting", detail=told)),
        sentence=f"{decision.sentence.rstrip('.')}; {told}.",
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
