"""The loop that owns starting and stopping: list what is, compare with what should be, act, again in 5 s.

Level-triggered: the engine's events only wake it early. One task per place for engine calls; granting (tenancy) only
marks, this loop does. A failing engine is not acted on: what should be is remembered.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from dispatcher.clock import Clock
from dispatcher.control import ledger as book
from dispatcher.control.plan import first_light, plan
from dispatcher.control.residency import settled_down
from dispatcher.errors import DispatcherError, NotFound, NotNow
from dispatcher.lifecycle.acting import Acting
from dispatcher.lifecycle.asking import ask_themselves
from dispatcher.lifecycle.looking import Looking
from dispatcher.lifecycle.provider import Provider
from dispatcher.lifecycle.resident import Resident
from dispatcher.lifecycle.surviving import Surviving
from dispatcher.lifecycle.tenancy import Tenancy
from dispatcher.vocabulary.action import Action, Start, Stop
from dispatcher.vocabulary.event import Acted, Event, Turned
from dispatcher.vocabulary.fleet import NOT_BREAKING, Breaking, FleetView, Lease, LeaseStatus, Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Snapshot

STUCK_RETRY_SECONDS = 60.0
STOP_RETRY_SECONDS = 1.0  # an engine that refuses to stop a place at once is not asked in a tight loop
LOOKS_UP_SECONDS = 5.0  # from a pause, to see whether it was made shorter
FAULT_PAUSE_SECONDS = 1.0  # after a fault of ours, whatever wakes the loop
NEVER_KNOWN_POLLS = 3  # so many polls, and none of them knew the host's memory: nobody does

_log = logging.getLogger(__name__)


class Controller:
    """in_flight: how many requests are at a place, with a lease or without. breaker: what the gateway makes of a place.
    jitter: 0..1, drawn anew at each call."""

    reconciled_at_seconds: float | None = None
    _memory_known_seconds: float | None = None  # when the host's free memory was last known; None: never

    def __init__(
        self,
        *,
        provider: Provider,
        settings: Callable[[], Settings],
        clock: Clock,
        snapshot: Callable[[], Snapshot],
        profiles: Callable[[], Profiles],
        emit: Callable[[Event], None],
        in_flight: Callable[[Place], int] = lambda place: 0,
        breaker: Callable[[Place], Breaking] = lambda place: NOT_BREAKING,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._provider = provider
        self._settings = settings
        self._clock = clock
        self._snapshot = snapshot
        self._profiles = profiles
        self._emit = emit
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._surviving = Surviving(emit=emit, clock=clock)
        self.tenancy = Tenancy(
            settings=settings,
            clock=clock,
            snapshot=snapshot,
            profiles=profiles,
            emit=emit,
            in_flight=in_flight,
            breaker=breaker,
            jitter=jitter,
            wake=self._wake.set,
            notify=self._notify,
        )
        self._acting = Acting(
            provider=provider,
            settings=settings,
            clock=clock,
            done=self._done,
            left=self._left,
            load_deadline_seconds=self.tenancy.load_deadline_seconds,
            fault=self._surviving.fault,
        )
        self._unaddressed: dict[Place, Acted] = {}  # loaded, and where it can be called is not seen yet
        self._looking = Looking(self.tenancy, busy=self._acting.busy, emit=emit, may_yet_run=self._acting.may_yet_run)

    # --- being asked -------------------------------------------------------------------------------------------

    def view(self) -> FleetView:
        """All places and the ledger, live. Cheap: what has not changed is not built again."""
        return self.tenancy.view()

    def hold(self, place: Place, num_ctx: int, evicts: Sequence[Place], cause: str) -> None:
        """Bring it up by hand, without a lease. NotNow says in words what stands against it."""
        refusal = self.tenancy.take(place, num_ctx, evicts, cause)
        if refusal is not None:
            raise NotNow(refusal)

    def ask_stop(self, place: Place) -> None:
        """Drain, then stop. NotFound for a place unknown, NotNow for one that does not run."""
        resident = self.tenancy.residents.get(place)
        if resident is None:
            raise NotFound(f"no place {place}")
        if resident.state is PlaceState.STARTING:
            self.tenancy.end_all(place, "withdrawn")
            self._acting.cancel(place)
            self.tenancy.stop(place, "asked", "stopped by hand while starting")
        elif resident.state in (PlaceState.READY, PlaceState.DRAINING):
            self.tenancy.turn(place, "drain_asked", "stopped by hand")
        elif resident.state is PlaceState.STOPPED and self.tenancy.promises.on(place):
            self.tenancy.end_all(place, "withdrawn")  # it was to be started again for these, after a crash
        else:
            raise NotNow(f"{place} is {resident.state.value}: there is nothing to stop")

    async def ready(self, lease_id: str, until_seconds: float) -> LeaseStatus | None:
        """Waits until the lease's place is ready, the lease has ended, or `until_seconds`; None: no such lease."""
        while True:
            status = self.tenancy.lease(lease_id)
            if status is None or status.ended or status.state is PlaceState.READY:
                return status
            if not await self.changed(until_seconds):
                return self.tenancy.lease(lease_id)

    async def changed(self, until_seconds: float) -> bool:
        """Waits for the next change of a state, a lease or a claim; False when `until_seconds` came first, or when the
        daemon is leaving."""
        left = until_seconds - self._clock.now_seconds()
        if left <= 0 or self.tenancy.leaving:
            return False
        try:
            async with asyncio.timeout(left):
                await self._changed.wait()
        except TimeoutError:
            return False
        return not self.tenancy.leaving

    def leave(self) -> None:
        """Whoever waits is answered now, with what has been promised so far: the daemon ends, promises do not."""
        self.tenancy.leaving = True
        self._notify()

    def restore(self, leases: Sequence[Lease]) -> None:
        """Leases of an earlier run, honoured at the first look. Call before `run`."""
        self._looking.restore(leases)

    # --- the loop ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reconciles until cancelled. Models keep running when the daemon leaves."""
        async with asyncio.TaskGroup() as group:
            self._acting.open(group)
            group.create_task(self._listen(), name="lifecycle.listen")
            while True:
                self._wake.clear()
                try:
                    await self.reconcile()
                except Exception as fault:
                    self._surviving.fault("reconcile", fault, "this round ended early; the next compares anew")
                    await asyncio.sleep(FAULT_PAUSE_SECONDS)
                else:
                    self._surviving.over("reconcile")
                await self._pause()

    async def _pause(self) -> None:
        """Until the next look is due or something calls for it. Looked up from: a reload may have made it shorter."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            left_seconds = self._pause_seconds(loop.time() - began)
            try:
                async with asyncio.timeout(min(left_seconds, LOOKS_UP_SECONDS)):
                    await self._wake.wait()
                return
            except TimeoutError:
                if left_seconds <= LOOKS_UP_SECONDS:
                    return

    async def prepare(self) -> None:
        """The first look, before anybody is answered: adopts what runs and honours restored leases. No action yet."""
        try:
            await self._observe()
        except Exception as fault:  # as in run: the first round looks again
            self._surviving.fault("first_look", fault, "what runs is seen at the next look")

    async def reconcile(self) -> None:
        """One look, one comparison, the actions begun. Never raises for what the engine does."""
        await self._observe()
        self._settle()
        now, snapshot = self._clock.now_seconds(), self._snapshot()
        for action in plan(self.view(), snapshot, now, self._settings().policy):
            self._begin(action)
        if self._nobody_knows(snapshot, now):
            for action in first_light(self.view(), snapshot, now, self._profiles()):
                self._begin(action)
        self.reconciled_at_seconds = self._clock.now_seconds()

    def _nobody_knows(self, snapshot: Snapshot, now_seconds: float) -> bool:
        """The host's free memory, for as long as makes blind; where it never was known, from the first few polls on."""
        if snapshot.reading("host_memory_available_bytes").value is not None:
            self._memory_known_seconds = now_seconds
            return False
        if self._memory_known_seconds is None:
            return snapshot.number >= NEVER_KNOWN_POLLS
        return now_seconds - self._memory_known_seconds > self._settings().policy.blind_after_seconds

    async def _observe(self) -> None:
        began = self._clock.now_seconds()
        try:
            async with asyncio.timeout(self._settings().lifecycle.list_timeout_seconds + 1.0):
                seen = await self._provider.list()
        except (DispatcherError, TimeoutError) as trouble:
            self._fail(str(trouble) or "no answer within the deadline")
        except Exception as fault:  # ours: a provider promises DispatcherError. The loop outlives it
            _log.exception("provider=%s fault=%s consequence=nothing is started or stopped", self._provider.name, fault)
            self._fail(f"a fault of ours: {fault!r}")
        else:
            self._fail(None)
            self._count_memory()
            self._looking.look(seen, began, self._clock.now_seconds())
            self._address(began)
            silent = [one.place for one in seen if one.in_part and one.running]
            await ask_themselves(silent, self._provider, self.tenancy, self._clock, self._notify)
            return
        await ask_themselves(list(self.tenancy.residents), self._provider, self.tenancy, self._clock, self._notify)

    async def _listen(self) -> None:
        while True:
            try:
                await self._provider.wake()
            except Exception as fault:
                self._surviving.fault("wake", fault, "the engine's news are seen at the next look")
                await asyncio.sleep(self._settings().lifecycle.reconcile_interval_seconds)
                continue
            self._surviving.over("wake")
            self._wake.set()

    def _pause_seconds(self, paused_seconds: float) -> float:
        """What is left until the next look: of the interval, or to the next lease's end; a stop under way is looked at
        sooner."""
        pause = self._settings().lifecycle.reconcile_interval_seconds
        if any(one.state is PlaceState.STOPPING for one in self.tenancy.residents.values()):
            pause = min(pause, 0.5)
        left, expiry = pause - paused_seconds, self.tenancy.promises.next_expiry_seconds()
        return max(0.05, left if expiry is None else min(left, expiry - self._clock.now_seconds()))

    def _fail(self, because: str | None) -> None:
        """What the engine's silence means is remembered once, and told once at each change."""
        tenancy, before = self.tenancy, self.tenancy.failing
        tenancy.failing = because
        tenancy.provider = (self._provider.name, self._provider.rehearsal, self._provider.local)
        if (before is None) != (because is None):
            self._emit(
                Turned(
                    at_seconds=self._clock.now_seconds(),
                    what="provider",
                    subject=self._provider.name,
                    before="failing" if before else "answers",
                    after="failing" if because else "answers",
                    because=because or "",
                )
            )
            self._notify()

    def _count_memory(self) -> None:
        tenancy = self.tenancy
        total = self._snapshot().reading("host_memory_total_bytes").value
        tenancy.total_bytes = total if total is not None else tenancy.total_bytes
        room = book.room_bytes(tenancy.total_bytes, self._settings().lifecycle)
        tenancy.ledger = replace(tenancy.ledger, room_bytes=room, foreign_bytes=self._provider.foreign_bytes())

    def _settle(self) -> None:
        """What time does: leases end, quarantines begin and end, stops become overdue, use is noted."""
        tenancy, now = self.tenancy, self._clock.now_seconds()
        for lease_id in tenancy.promises.overdue(now):
            tenancy.end(lease_id, "expired")
        overdue_seconds = self._settings().lifecycle.stop_timeout_seconds
        for view in self.view().places:
            resident = tenancy.residents[view.place]
            tenancy.write(view.place, settled_down(resident.residency, now, self._settings().lifecycle))
            if tenancy.residents[view.place].state is PlaceState.QUARANTINED:
                tenancy.end_all(view.place, "start_failed")
            overdue = view.state is PlaceState.STOPPING and now - view.since_seconds > overdue_seconds
            silent_seconds = now - view.since_seconds if self._silent_since_found(resident) else 0.0
            if silent_seconds > tenancy.load_deadline_seconds(view.place):
                self._give_up(view.place)
            if overdue and not self._acting.starting(view.place):
                tenancy.turn(view.place, "stop_overdue", f"told to stop {overdue_seconds:.0f} s ago, and still there")
                tenancy.withdraw_grantee_of(view.place)
            if view.state is PlaceState.READY and view.busy:
                tenancy.residents[view.place] = replace(tenancy.residents[view.place], used_at_seconds=now)

    def _begin(self, action: Action) -> None:
        place, tenancy = action.place, self.tenancy
        if self._acting.busy(place):
            return
        state = tenancy.residents[place].state
        if isinstance(action, Stop):
            pause = {PlaceState.STUCK: STUCK_RETRY_SECONDS, PlaceState.STOPPING: STOP_RETRY_SECONDS}.get(state, 0.0)
            if self._acting.since_last_seconds(place) < pause:
                return
            if state in (PlaceState.READY, PlaceState.DRAINING):
                tenancy.stop(place, action.cause, action.detail)
                if action.cause == "failed":
                    self._looking.count_crash(place, action.detail, self._clock.now_seconds(), "place_crashed")
            self._acting.begin(replace(action, cause=tenancy.residents[place].stop_cause))
            return
        if tenancy.residents[place].seen.paused and tenancy.residents[place].seen.running:
            return  # it goes on when who paused it lets it
        if self._silent_since_found(tenancy.residents[place]) or place in self._unaddressed:
            return  # what it has loaded, or where it is, is not known yet: a load now could take it from who uses it
        if state is PlaceState.STOPPED and tenancy.take(place, action.num_ctx, (), action.cause) is not None:
            return  # no room for it yet: its lease keeps its share, and this is asked again
        self._acting.begin(replace(action, cause=tenancy.residents[place].start_cause))

    def _done(self, acted: Acted) -> None:
        """The end of a place's task. What it achieved is believed here, and seen at the next look."""
        place = acted.action.place
        if place in self.tenancy.residents and isinstance(acted.action, Start):
            if acted.ok and self.tenancy.residents[place].seen.endpoint is None:
                self._unaddressed[place] = acted  # its port was chosen at this start: the next look tells it
            elif acted.ok:
                self.tenancy.ready(place, acted.load_seconds)
            else:
                its_own = acted.error_type != "engine_unreachable"
                self.tenancy.start_failed(place, acted.because, its_own=its_own)
        self._emit(acted)
        self._wake.set()

    def _address(self, look_began_seconds: float) -> None:
        """What was loaded before it could be called is ready once a look has seen its address; what that look does not
        find running is started again."""
        for place, acted in list(self._unaddressed.items()):
            resident = self.tenancy.residents.get(place)
            if resident is None or resident.state is not PlaceState.STARTING:
                del self._unaddressed[place]
            elif look_began_seconds > acted.at_seconds and not resident.seen.in_part:
                del self._unaddressed[place]
                if resident.seen.running:
                    self.tenancy.ready(place, acted.load_seconds)

    def _silent_since_found(self, resident: Resident) -> bool:
        """It ran when we came, and has not said yet what it has loaded."""
        found = resident.state is PlaceState.STARTING and resident.start_cause == "adopted" and resident.seen.running
        return found and (resident.seen.answers is False or resident.seen.in_part)

    def _give_up(self, place: Place) -> None:
        """Silent since it was found, for as long as a load may take: it is treated as a load that does not end."""
        resident, now = self.tenancy.residents[place], self._clock.now_seconds()
        because = f"found running, and silent ever since: {resident.seen.because or 'no answer'}"
        action = Start(place=place, num_ctx=resident.num_ctx or DEFAULT_NUM_CTX, cause=resident.start_cause)
        seconds = now - resident.residency.since_seconds
        self._done(
            Acted(at_seconds=now, action=action, ok=False, seconds=seconds, because=because, error_type="load_timeout")
        )

    def _left(self, place: Place) -> None:
        """A start that was stopped by hand has ended: only now can it be told to stop, and its time for that begins."""
        resident = self.tenancy.residents.get(place)
        if resident is not None:
            self.tenancy.write(place, replace(resident.residency, since_seconds=self._clock.now_seconds()))
        self._wake.set()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
