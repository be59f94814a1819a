"""The owner of places, leases and the memory ledger: every change of them happens here, synchronously.

Between a check and the promise made on it nothing moves, because nothing here awaits. A read that gates a mutation ("is
there room? is it idle?") is read here and nowhere else (law 1). What must never come in: an await, a socket, a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import getrandbits

from dispatcher.clock import Clock
from dispatcher.control import ledger as book
from dispatcher.control.ledger import Ledger, Shortage
from dispatcher.control.liveness import Liveness
from dispatcher.control.residency import Happening, Residency, failed, failure_told, turned
from dispatcher.errors import NotFound, NotNow
from dispatcher.lifecycle.promises import Promises
from dispatcher.lifecycle.resident import Resident, dwell_seconds, eta_seconds, released
from dispatcher.lifecycle.showing import Showing
from dispatcher.vocabulary.action import BLIND, StopCause
from dispatcher.vocabulary.event import Event, Leased, Turned
from dispatcher.vocabulary.fleet import Breaking, Claim, FleetView, Lease, LeaseStatus, Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Snapshot


class Tenancy:
    """wake: what should be has changed, look again soon. notify: a state or a lease that somebody may wait for has."""

    def __init__(
        self,
        *,
        settings: Callable[[], Settings],
        clock: Clock,
        snapshot: Callable[[], Snapshot],
        profiles: Callable[[], Profiles],
        emit: Callable[[Event], None],
        in_flight: Callable[[Place], int],
        breaker: Callable[[Place], Breaking],
        jitter: Callable[[], float],
        wake: Callable[[], None],
        notify: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._profiles = profiles
        self._emit = emit
        self._jitter = jitter
        self._wake = wake
        self._notify = notify
        self._showing = Showing(
            settings=settings, profiles=profiles, snapshot=snapshot, in_flight=in_flight, breaker=breaker
        )
        self._priority_floor = 0.0  # greedy-dual's L
        self.residents: dict[Place, Resident] = {}
        self.ledger = Ledger()
        self.promises = Promises()
        self.total_bytes: float | None = None
        self.failing: str | None = "it has not been asked yet"
        self.provider: tuple[str, bool, bool] = ("none", False, True)
        self.pinned_model: str | None = None
        self.draining = self.leaving = False  # the latter: nothing is started any more

    # --- reading -----------------------------------------------------------------------------------------------

    def view(self) -> FleetView:
        return self._showing.fleet(
            residents=self.residents,
            ledger=self.ledger,
            promises=self.promises,
            total_bytes=self.total_bytes,
            failing=self.failing,
            provider=self.provider,
            pinned_model=self.pinned_model,
            draining=self.draining,
            now_seconds=self._clock.now_seconds(),
        )

    def view_of(self, place: Place) -> PlaceView | None:
        return self.view().find(place)

    def changed(self, place: Place | None = None) -> None:
        """What is shown of the place (None: of all) is to be built anew."""
        if place is None:
            self._showing.forget_all()
        else:
            self._showing.forget(place)

    def apply(self) -> None:
        """After a reload: what may be promised, and all that is shown, by the settings that are in force now."""
        self.ledger = replace(self.ledger, room_bytes=book.room_bytes(self.total_bytes, self._settings().lifecycle))
        self.changed()

    def budget_bytes(self, place: Place, num_ctx: int) -> int:
        """What a shared server says that it holds with this context, else its footprint with it; for a model outside
        the chain what it was seen to hold, or its limit."""
        profiles, seen = self._profiles(), self.residents[place].seen
        if seen.shared and seen.loaded_size_bytes and seen.loaded_num_ctx in (None, num_ctx):
            return seen.loaded_size_bytes
        if place.model in profiles.facts:
            return profiles.footprint_bytes(place.model, num_ctx, self._settings().lifecycle.num_parallel)
        return seen.memory_used_bytes or seen.loaded_size_bytes or seen.memory_limit_bytes or 0

    def lease(self, lease_id: str) -> LeaseStatus | None:
        """None for an id never seen, or ended long ago."""
        lease, ended = self.promises.get(lease_id), None
        if lease is None:
            if (gone := self.promises.ended(lease_id)) is None:
                return None
            lease, ended = gone
        resident = self.residents.get(lease.place)
        if resident is None:
            return LeaseStatus(lease=lease, state=PlaceState.STOPPED, ended=ended or "withdrawn")
        eta = 0.0 if resident.state is PlaceState.READY else eta_seconds(resident, self._clock.now_seconds())
        return LeaseStatus(
            lease=lease, state=resident.state, eta_seconds=eta, endpoint=resident.seen.endpoint, ended=ended
        )

    # --- promising ---------------------------------------------------------------------------------------------

    def reserve(
        self,
        *,
        place: Place,
        num_ctx: int,
        evicts: Sequence[Place],
        decision_id: str,
        seconds: float,
        durable: bool = True,
    ) -> Lease | str:
        """A lease on the place, or why not, in words. Evictions are marked here, and done by the loop."""
        now, rules = self._clock.now_seconds(), self._settings().lifecycle
        if len(self.promises) >= rules.max_leases:
            return f"{len(self.promises)} leases are alive, the most allowed; give back what is done"
        refusal = self.take(place, num_ctx, evicts, "leased", decision_id)
        if refusal is not None:
            return refusal
        lasts = min(seconds, rules.lease_max_seconds)
        ready = self.residents[place].state is PlaceState.READY
        lease = Lease(
            id=f"l-{getrandbits(64):016x}",
            place=place,
            decision_id=decision_id,
            num_ctx=num_ctx,
            seconds=lasts,
            granted_at_seconds=now,
            expires_at_seconds=now + lasts if ready else None,
            evicts=tuple(evicts),
            durable=durable,
        )
        self.promises.put(lease)
        self._used(place)
        self._emit(Leased(at_seconds=now, lease=lease, what="granted"))
        return lease

    def take(
        self, place: Place, num_ctx: int, evicts: Sequence[Place], cause: str, decision_id: str | None = None
    ) -> str | None:
        """The one admission rule: mark the place as wanted with this context, or say in words why not."""
        resident, now = self.residents.get(place), self._clock.now_seconds()
        refusal = self._not_takeable(place, resident, num_ctx, decision_id)
        if refusal is not None or resident is None:
            return refusal
        if resident.state in (PlaceState.READY, PlaceState.STARTING) and (resident.num_ctx or 0) >= num_ctx:
            return None
        num_ctx = max([num_ctx, *(lease.num_ctx for lease in self.promises.on(place).values())])
        views = {view.place: view for view in self.view().places}
        for victim in evicts:
            view = views.get(victim)
            if view is None or not view.evictable(now) or view.claimed_by not in (None, decision_id):
                return f"{victim} may no longer be stopped"
        grant = book.granted_blind if cause == BLIND else book.granted
        after = grant(self.ledger, place, self.budget_bytes(place, num_ctx), evicts)
        if isinstance(after, Shortage):
            return after.words
        self.ledger = after
        self.residents[place] = replace(
            resident,
            num_ctx=num_ctx,
            start_cause=cause,
            started_at_seconds=now,
            expected_ready_at_seconds=now + self._showing.load_seconds(resident),
        )
        self.turn(place, "start_asked", f"wanted ({cause}) with {num_ctx:,} tokens of context")
        for victim in evicts:
            self._priority_floor = max(self._priority_floor, views[victim].keep_priority)
            self.stop(victim, "evicted", f"makes room for {place.model}")
        return None

    def _not_takeable(
        self, place: Place, resident: Resident | None, num_ctx: int, decision_id: str | None
    ) -> str | None:
        if resident is None:
            return f"{place} is not there any more"
        holding = self.ledger.holdings.get(place)
        if holding is not None and holding.taken_by is not None:
            return f"{place} is making room for {holding.taken_by.model}"
        if resident.seen.running and resident.seen.paused:
            return f"{place} is silent: its container is paused"
        now = self._clock.now_seconds()
        for claim in self.promises.claims(now):
            if place in claim.victims and claim.decision_id != decision_id:
                return f"{place} takes no new leases: {claim.place.model} waits for its memory"
        if resident.state in (PlaceState.READY, PlaceState.STARTING) and (resident.num_ctx or 0) >= num_ctx:
            return None
        if resident.state not in (PlaceState.STOPPED, PlaceState.READY, PlaceState.QUARANTINED):
            return f"{place} is {resident.state.value}"
        if self.leaving or self.failing:
            return "the dispatcher is shutting down" if self.leaving else f"the engine cannot be asked: {self.failing}"
        if resident.state is PlaceState.READY and (view := self.view_of(place)) and view.busy:
            return f"{place} is in use with another context"
        return None

    def renew(self, lease_id: str) -> Lease:
        """Its time begins anew. NotFound when there is none, NotNow when it is over."""
        lease = self.promises.get(lease_id)
        if lease is None:
            if (gone := self.promises.ended(lease_id)) is not None:
                raise NotNow(f"lease {lease_id} is over ({gone[1]}); ask /select for a new one")
            raise NotFound(f"no lease {lease_id}; it may have ended long ago. Ask /select for a new one")
        now = self._clock.now_seconds()
        until = now + lease.seconds if lease.expires_at_seconds is not None else None
        lease = replace(lease, expires_at_seconds=until, durable=True)  # who renews it writes it down
        self.promises.put(lease)
        self.changed(lease.place)
        self._emit(Leased(at_seconds=now, lease=lease, what="renewed"))
        return lease

    def end(self, lease_id: str, cause: str) -> None:
        """Give it back; nothing happens when it is over already."""
        lease = self.promises.end(lease_id, cause)
        if lease is None:
            return
        self._used(lease.place)
        self._emit(Leased(at_seconds=self._clock.now_seconds(), lease=lease, what="ended", cause=cause))
        resident = self.residents.get(lease.place)
        left = self.promises.on(lease.place)
        if not left and resident is not None and resident.state in (PlaceState.STOPPED, PlaceState.QUARANTINED):
            self.release(lease.place)
        if not left:
            self._notify()
            if resident is None or resident.state is not PlaceState.READY:
                self._wake()  # a drain or a grant may wait for this; an idle ready place is looked at soon enough

    def end_all(self, place: Place, cause: str) -> None:
        for lease_id in list(self.promises.on(place)):
            self.end(lease_id, cause)

    def claim(self, claim: Claim) -> bool:
        """From now on the victims take no new leases, until then or `unclaim`; False: others were first."""
        before, taken = self.promises.claim_of(claim.decision_id), self.promises.claim(claim)
        if taken and before != claim:
            self.changed()
        return taken

    def unclaim(self, decision_id: str) -> None:
        if self.promises.unclaim(decision_id):
            self.changed()
            self._notify()

    # --- turning -----------------------------------------------------------------------------------------------

    def load_deadline_seconds(self, place: Place) -> float:
        resident = self.residents.get(place)  # None: no longer declared since its start was begun
        if resident is None:
            return self._settings().lifecycle.load_timeout_seconds
        return self._showing.load_deadline_seconds(resident)

    def turn(self, place: Place, event: Happening, because: str) -> None:
        resident = self.residents[place]
        self.write(place, turned(resident.residency, event, self._clock.now_seconds(), because))

    def write(self, place: Place, residency: Residency) -> None:
        """The only way a state changes; every change leaves as one event."""
        resident = self.residents[place]
        if residency is resident.residency:
            return
        self.residents[place] = replace(resident, residency=residency)
        self.changed(place)
        if residency.state is not resident.state:
            self._emit(
                Turned(
                    at_seconds=self._clock.now_seconds(),
                    what="place",
                    subject=str(place),
                    before=resident.state.value,
                    after=residency.state.value,
                    because=residency.because,
                    place=place,
                )
            )
            self._notify()
            self._wake()

    def stop(self, place: Place, cause: StopCause, detail: str) -> None:
        self.residents[place] = replace(self.residents[place], stop_cause=cause)
        self.turn(place, "stop_asked", detail or cause)

    def ready(self, place: Place, load_seconds: float | None) -> None:
        """It is loaded and answers. load_seconds: of this load; None when it was found loaded."""
        now, resident = self._clock.now_seconds(), self.residents[place]
        turns = (*resident.turns_at_seconds, now)[-16:]
        measured = load_seconds if load_seconds is not None else resident.load_seconds
        dwell = dwell_seconds(turns, now, self._settings().lifecycle.dwell_seconds, measured or 0.0)
        num_ctx = resident.num_ctx or DEFAULT_NUM_CTX
        self.residents[place] = replace(
            resident,
            ready_at_seconds=now,
            life=Liveness(),
            load_seconds=measured,
            dwell_until_seconds=now + dwell,
            turns_at_seconds=turns,
            expected_ready_at_seconds=None,
            residency=replace(resident.residency, retry_at_seconds=0.0, quarantined_until_seconds=0.0, failure=""),
        )
        if place in self.ledger.holdings:  # a reload counted as the larger of two until now
            self.ledger = book.adopted(self.ledger, place, self.budget_bytes(place, num_ctx))
        self.turn(place, "loaded", f"loaded with {num_ctx:,} tokens of context")
        self.begin_leases(place)

    def begin_leases(self, place: Place) -> None:
        now = self._clock.now_seconds()
        for lease in self.promises.begin(place, now):
            self._emit(Leased(at_seconds=now, lease=lease, what="ready"))
        self.changed(place)

    def stopped(self, place: Place, because: str) -> None:
        """It was seen not to run. Its memory is free, unless a live lease keeps its share."""
        now, resident = self._clock.now_seconds(), self.residents[place]
        holding = self.ledger.holdings.get(place)
        given_back_bytes, since_seconds = released(resident, holding.budget_bytes if holding else 0)
        self.residents[place] = replace(
            resident,
            stopped_at_seconds=now,
            released_bytes=given_back_bytes,
            released_since_seconds=since_seconds,
            ready_at_seconds=None,
            turns_at_seconds=(*resident.turns_at_seconds, now)[-16:],
        )
        if not self.promises.on(place):
            self.release(place)
        failure = failure_told(resident.residency, now, asked=resident.stop_cause != "failed")
        self.turn(place, "seen_stopped", failure or because)
        self._wake()  # a grantee may be waiting for exactly this

    def start_failed(self, place: Place, because: str, *, its_own: bool = True) -> None:
        """Its leases end, what half-started is stopped, the next try waits for its backoff.

        its_own False: the engine could not be asked, which is no failure of this place and leads to no quarantine.
        """
        self.end_all(place, "start_failed")
        self.residents[place] = replace(self.residents[place], stop_cause="failed")
        self.turn(place, "start_failed", because)
        if its_own:
            self.count_failure(place, because)
            return
        retry_at = self._clock.now_seconds() + self._settings().lifecycle.backoff_min_seconds
        self.write(place, replace(self.residents[place].residency, retry_at_seconds=retry_at, failure=because))

    def count_failure(self, place: Place, because: str) -> None:
        now, rules, before = self._clock.now_seconds(), self._settings().lifecycle, self.residents[place].residency
        self.write(place, failed(before, now, rules, jitter_ratio=self._jitter(), because=because))

    def withdraw_grantee_of(self, victim: Place) -> None:
        """A victim is stuck: who counted on its memory is told so, and its grant ends. One that was told to stop
        meanwhile, and was not seen stopped either, still counts: nobody knows how far its start came."""
        holding = self.ledger.holdings.get(victim)
        grantee = None if holding is None else holding.taken_by
        if grantee is None or self.residents[grantee].state is not PlaceState.STARTING:
            return
        self.end_all(grantee, "withdrawn")
        self.release(grantee)
        seen = self.residents[grantee].seen
        if seen.running:  # it was to be reloaded: what it holds it holds, until the next look adopts it
            num_ctx = seen.loaded_num_ctx or DEFAULT_NUM_CTX
            self.ledger = book.adopted(self.ledger, grantee, self.budget_bytes(grantee, num_ctx))
        self.turn(grantee, "withdrawn", f"{victim} is stuck and keeps its memory")

    def release(self, place: Place) -> None:
        self.ledger = book.released(self.ledger, place)
        self.changed(place)

    def forget(self, place: Place) -> None:
        """It is no longer declared: its leases end, its memory is nobody's business of ours."""
        self.end_all(place, "withdrawn")
        self.release(place)
        del self.residents[place]
        self.changed(place)
        self._notify()

    def _used(self, place: Place) -> None:
        resident = self.residents.get(place)
        if resident is not None:
            now = self._clock.now_seconds()
            self.residents[place] = replace(resident, used_at_seconds=now, priority_base=self._priority_floor)
        self.changed(place)
