"""What the engine says is, against what should be: each difference becomes a turn of one place, or nothing.

A look that began before a place's last turn proves nothing about it; a place with a task of ours under way is judged
by that task's end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dispatcher.control import ledger as book
from dispatcher.control.ledger import Shortage
from dispatcher.lifecycle.resident import Resident, looked_at
from dispatcher.lifecycle.tenancy import Tenancy
from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.event import GONE, Acted, Event, Leased, Turned
from dispatcher.vocabulary.fleet import Lease, Place, PlaceSeen, PlaceState
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX


class Looking:
    """busy: whether a task of ours is at work on a place. may_yet_run: whether a start of ours may still bring it up,
    for all that a look that began then knows."""

    def __init__(
        self,
        tenancy: Tenancy,
        *,
        busy: Callable[[Place], bool],
        emit: Callable[[Event], None],
        may_yet_run: Callable[[Place, float], bool] = lambda place, began_seconds: False,
    ) -> None:
        self._tenancy = tenancy
        self._busy = busy
        self._may_yet_run = may_yet_run
        self._emit = emit
        self._restoring: list[Lease] = []
        self._unplaced: list[Lease] = []  # promised again, their memory not yet reserved again

    def restore(self, leases: Sequence[Lease]) -> None:
        """Leases of an earlier run, honoured (or ended with a reason) after the first look."""
        self._restoring = list(leases)

    def look(self, seen: Sequence[PlaceSeen], began_seconds: float, now_seconds: float) -> None:
        tenancy = self._tenancy
        here = {one.place for one in seen}
        for place in [place for place in tenancy.residents if place not in here]:
            self._vanished(place, now_seconds)
        for one in seen:
            resident = tenancy.residents.get(one.place) or Resident(seen=one)
            tenancy.residents[one.place] = looked_at(resident, one, now_seconds)
        tenancy.changed()
        restoring, self._restoring = self._restoring, []
        for lease in restoring:
            self._restore_promise(lease, now_seconds)
        for one in seen:
            self._compare(one, began_seconds, now_seconds)
        self._unplaced += restoring
        if tenancy.ledger.room_bytes is None:
            return  # nobody knows the memory yet: they are promised, and placed at the first look that does
        unplaced, self._unplaced = self._unplaced, []
        for lease in unplaced:
            self._restore_memory(lease)

    def _compare(self, seen: PlaceSeen, began_seconds: float, now_seconds: float) -> None:
        tenancy, place = self._tenancy, seen.place
        resident = tenancy.residents[place]
        state = resident.state
        if self._busy(place):
            return
        if state in (PlaceState.STOPPED, PlaceState.QUARANTINED):
            if seen.running and began_seconds > resident.residency.since_seconds:
                self._adopt(seen)
            elif not seen.running and place in tenancy.ledger.holdings and not tenancy.promises.on(place):
                tenancy.release(place)  # found running in quarantine once, and gone since
        elif began_seconds <= resident.residency.since_seconds:
            return
        elif state in (PlaceState.STOPPING, PlaceState.STUCK) and not seen.running:
            if not self._may_yet_run(place, began_seconds):
                tenancy.stopped(place, "stopped")
        elif state in (PlaceState.READY, PlaceState.DRAINING) and not seen.running:
            self._gone(seen, now_seconds)
        elif state is PlaceState.STARTING and resident.start_cause == "adopted":
            self._heard_at_last(seen)
        elif state is PlaceState.READY and seen.loaded is False:
            tenancy.residents[place] = replace(resident, ready_at_seconds=None)  # it holds its model no more
            tenancy.turn(place, "unloaded", "its model was unloaded by somebody else; it is loaded again")
        elif state is PlaceState.READY and seen.loaded:
            self._as_loaded(place, seen.loaded_num_ctx or resident.num_ctx or DEFAULT_NUM_CTX)

    def _adopt(self, seen: PlaceSeen) -> None:
        """It runs, and nobody here started it (a restart of ours, or a person): it counts, and becomes ready."""
        tenancy, place = self._tenancy, seen.place
        leased = self._leased_num_ctx(place)
        num_ctx = max(leased, seen.loaded_num_ctx or (0 if leased else DEFAULT_NUM_CTX))
        tenancy.ledger = book.adopted(tenancy.ledger, place, tenancy.budget_bytes(place, num_ctx))
        tenancy.residents[place] = replace(tenancy.residents[place], num_ctx=num_ctx, start_cause="adopted")
        if seen.paused:  # it holds its memory, and what it has loaded is seen once it goes on; until then it is silent
            tenancy.turn(place, "loaded", "found running, and its container is paused")
            return
        tenancy.turn(place, "seen_running", "found running")
        if seen.loaded and (seen.loaded_num_ctx or num_ctx) >= num_ctx:  # else a reload was promised before a restart
            tenancy.ready(place, None)
            return
        room = tenancy.ledger.room_bytes
        if seen.loaded is None or room is None or tenancy.promises.on(place):
            return  # a silent server may be at work: only one that says it is empty may be unwanted
        if book.reserved_bytes(tenancy.ledger) > room:
            tenancy.stop(place, "unwanted", "found running without its model, and there is no room to load it")

    def _heard_at_last(self, seen: PlaceSeen) -> None:
        """It was silent when it was adopted, and says now what it has loaded: that is what it runs with. Nothing is
        loaded anew, unless it holds less than its leases were promised."""
        tenancy, place = self._tenancy, seen.place
        leased = self._leased_num_ctx(place)
        num_ctx = seen.loaded_num_ctx or max(leased, DEFAULT_NUM_CTX)
        if seen.loaded and num_ctx >= leased:
            tenancy.residents[place] = replace(tenancy.residents[place], num_ctx=num_ctx)
            tenancy.ready(place, None)

    def _as_loaded(self, place: Place, num_ctx: int) -> None:
        """Somebody called it with another num_ctx, or a shared server says what it takes: what is loaded counts."""
        tenancy = self._tenancy
        resident, held = tenancy.residents[place], tenancy.ledger.holdings.get(place)
        shared_bytes = tenancy.budget_bytes(place, num_ctx) if resident.seen.shared else None
        if num_ctx == resident.num_ctx and (shared_bytes is None or (held and held.budget_bytes == shared_bytes)):
            return
        tenancy.residents[place] = replace(resident, num_ctx=num_ctx)
        tenancy.ledger = book.adopted(tenancy.ledger, place, tenancy.budget_bytes(place, num_ctx))
        tenancy.changed(place)

    def _vanished(self, place: Place, now_seconds: float) -> None:
        """The engine no longer lists it: its container was removed, or declared anew as something else."""
        before = self._tenancy.residents[place].state.value
        self._tenancy.forget(place)
        self._emit(
            Turned(
                at_seconds=now_seconds,
                what="place",
                subject=str(place),
                before=before,
                after=GONE,
                because="the engine does not list it any more",
                place=place,
            )
        )

    def _gone(self, seen: PlaceSeen, now_seconds: float) -> None:
        """It was ready and no longer runs. Out of memory or an error exit is a crash; a stop by hand is not."""
        tenancy, place = self._tenancy, seen.place
        crashed = seen.oom_killed or seen.exit_code not in (None, 0, 137, 143)
        why = "killed: out of memory" if seen.oom_killed else "it stopped, and nobody here asked for it"
        if crashed and not seen.oom_killed:
            why = f"it exited with {seen.exit_code}, and nobody here asked for it"
        tenancy.stopped(place, why)
        if crashed:
            self.count_crash(place, why, now_seconds, "oom_killed" if seen.oom_killed else "place_crashed")

    def count_crash(self, place: Place, why: str, now_seconds: float, error_type: str) -> None:
        """A failure of a place that had been started: its backoff, its quarantine, and the event that tells of it."""
        tenancy = self._tenancy
        tenancy.count_failure(place, why)
        num_ctx = tenancy.residents[place].num_ctx or DEFAULT_NUM_CTX
        self._emit(
            Acted(
                at_seconds=now_seconds,
                action=Start(place=place, num_ctx=num_ctx, cause="leased"),
                ok=False,
                seconds=0.0,
                because=why,
                error_type=error_type,
            )
        )

    def _restore_promise(self, lease: Lease, now_seconds: float) -> None:
        """Before places are compared, so that an adopted one knows what it was promised for."""
        known = lease.place in self._tenancy.residents
        if known and (lease.expires_at_seconds is None or lease.expires_at_seconds > now_seconds):
            if lease.expires_at_seconds is not None:  # a clock set back must not make a promise longer than it was
                ends = min(lease.expires_at_seconds, now_seconds + lease.seconds)
                lease = replace(lease, expires_at_seconds=ends)
            self._tenancy.promises.put(lease)
            self._tenancy.changed(lease.place)
            return
        cause = "expired" if known else "withdrawn"
        self._emit(Leased(at_seconds=now_seconds, lease=lease, what="ended", cause=cause))

    def _leased_num_ctx(self, place: Place) -> int:
        return max((lease.num_ctx for lease in self._tenancy.promises.on(place).values()), default=0)

    def _restore_memory(self, lease: Lease) -> None:
        """Its place keeps its share of the ledger, and its victims are on their way out again, as promised."""
        tenancy, place = self._tenancy, lease.place
        resident = tenancy.residents.get(place)
        if tenancy.promises.get(lease.id) is None or resident is None:
            return
        if resident.state is PlaceState.READY:
            tenancy.begin_leases(place)
            return
        victims = [
            victim
            for victim in lease.evicts
            if victim in tenancy.residents
            and tenancy.residents[victim].state in (PlaceState.READY, PlaceState.STARTING, PlaceState.STOPPING)
            and not tenancy.promises.on(victim)
        ]
        num_ctx = self._leased_num_ctx(place)  # of all its leases: this may not be the largest
        budget = tenancy.budget_bytes(place, num_ctx)
        after = book.granted(tenancy.ledger, place, budget, victims)
        if isinstance(after, Shortage):
            if place not in tenancy.ledger.holdings:  # one that runs is counted already, and keeps what was promised
                tenancy.end(lease.id, "withdrawn")
            return
        tenancy.ledger = after
        cause = resident.start_cause if resident.state is PlaceState.STARTING else "leased"  # adopted: as it was found
        tenancy.residents[place] = replace(resident, num_ctx=max(num_ctx, resident.num_ctx or 0), start_cause=cause)
        tenancy.turn(place, "start_asked", "leased before the restart")
        for victim in victims:
            tenancy.stop(victim, "evicted", f"makes room for {place.model}, as promised before the restart")
