"""The fault laboratory: the real daemon's rooms in virtual time, around an engine, a Prometheus, a host and a disk that
fail as told. Deterministic: the same moves give the same history. What may be done to it: moves.py.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from dispatcher.clock import ManualClock
from dispatcher.vocabulary.decision import Selected
from dispatcher.vocabulary.event import Acted, Event, Leased, Sampled, Turned
from dispatcher.vocabulary.fleet import HOLDING, Place, PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB, Settings, TelemetrySettings
from tests.faultlab.disk import Disk
from tests.faultlab.engine import PLACES, FaultyEngine
from tests.faultlab.process import Process
from tests.faultlab.record import Errors, in_short
from tests.faultlab.rules import CALM_SECONDS, LIFECYCLE, POLICY
from tests.faultlab.sources import SWITCHED_OFF, FakeHost, FakePrometheus
from tests.faultlab.truth import (
    HARD_IS_KNOWN_SECONDS,
    SLACK_SECONDS,
    Held,
    Truth,
    booked_bytes,
    counted_bytes,
    miscounted,
)
from tests.virtual_time import VirtualTimeLoop

T = TypeVar("T")
CORES = 4.0
LAST_EVENTS = 20  # shown with a failure


class Lab:
    """total_gib: the host's memory. seed: of the jitter of backoffs."""

    def __init__(self, total_gib: float = 9.0, seed: int = 0) -> None:
        self.steady = ManualClock()
        self.loop = VirtualTimeLoop(self.steady)
        self.total_bytes = int(total_gib * GIB)
        self.other_bytes = 0
        self.other_cores = 0.0
        self.stall_ratio = 0.0
        self.wall_offset_seconds = 0.0
        self.settings = replace(
            Settings(), lifecycle=LIFECYCLE, policy=POLICY, telemetry=TelemetrySettings(signals=SWITCHED_OFF)
        )
        self.chance = random.Random(seed)
        self.engine = FaultyEngine(self.steady, lambda: self.wall_offset_seconds)
        self.engine.stopping = self._stopping
        self.engine.weighed = self._weighed
        self.prometheus = FakePrometheus(self.steady, self._measured, self.wall_seconds)
        self.host = FakeHost(self._measured)
        self.disk = Disk()
        self.truth = Truth()
        self.faults: Counter[str] = Counter()  # by kind, as injected
        self.story: list[str] = []  # every event, for comparing two runs
        self.in_flight: dict[Place, float] = {}  # since when
        self.working: dict[Place, float] = {}
        self.hard_at_seconds = float("-inf")
        self._excused = False  # more is held than may be, and others did it
        self._errors = Errors()
        self._errors.begin()
        self.process = self._another_process()
        self.run(self._boot())

    # ── running ──

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def advance(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    def now(self) -> float:
        return self.steady.now_seconds()

    def wall_seconds(self) -> float:
        return self.steady.now_seconds() + self.wall_offset_seconds

    def close(self) -> None:
        async def end() -> None:
            await self.process.kill()
            await self.engine.end()

        self.run(end())
        self.loop.close()
        self.disk.close()
        self._errors.end()

    def _another_process(self) -> Process:
        return Process(
            settings=self.settings,
            engine=self.engine,
            sources=(self.prometheus, self.host),
            disk=self.disk,
            steady=self.steady,
            wall_offset_seconds=self.wall_offset_seconds,
            in_flight=lambda place: int(place in self.in_flight),
            jitter=self.chance.random,
            heard=self._heard,
        )

    async def _boot(self) -> None:
        await self.process.boot()

    async def restart(self) -> None:
        """kill -9, and a new process that knows what was written and what the engine says."""
        self.process.store.settle()
        await self.process.kill()
        self.engine.forget_caller()
        self.in_flight.clear()  # its connections are gone
        self.process = self._another_process()
        self.truth.new_process(self.now(), self.process.clock.now_seconds())
        await self._boot()

    def _measured(self) -> Mapping[str, float]:
        used = sum(server.cores for server in self.engine.servers.values()) + self.other_cores
        return {
            "host_memory_available_bytes": float(max(0, self.available_bytes())),
            "host_memory_total_bytes": float(self.total_bytes),
            "host_cpu_busy_ratio": min(1.0, used / CORES),
            "host_cpu_count": CORES,
            "host_memory_pressure_full_ratio": self.stall_ratio,
        }

    def available_bytes(self) -> int:
        return self.total_bytes - self.other_bytes - self.engine.held_bytes()

    def room_bytes(self) -> int:
        return self.total_bytes - max(int(self.total_bytes * 0.05), GIB)

    def note_hardness(self) -> None:
        if self.available_bytes() < max(POLICY.memory_hard_bytes, 0.02 * self.total_bytes):
            self.hard_at_seconds = self.now()

    # ── what the dispatcher does ──

    def _heard(self, event: Event) -> None:
        clock, truth = self.process.clock.now_seconds(), self.truth
        if isinstance(event, Turned) and event.what == "place" and event.place is not None:
            truth.check_turn(event, event.place)
            if event.after == "stopping":
                truth.stop_decided[event.place] = self.now()
            if event.after == "starting" and event.because.startswith("wanted"):
                self._check_promise(event.place)
        elif isinstance(event, Acted):
            truth.check_acted(event)
        elif isinstance(event, Leased):
            truth.check_leased(event, clock, self._why_not(event))
        if not isinstance(event, Sampled):
            self.story.append(f"{clock:.3f} {in_short(event)}")

    def _check_promise(self, place: Place) -> None:
        booked = booked_bytes(self.process.tenancy.ledger)
        if booked > self.room_bytes():
            self.truth.fault(f"{place} was promised: {booked} bytes booked, there is room for {self.room_bytes()}")

    def _why_not(self, event: Leased) -> str:
        held = self.truth.held.get(event.lease.id)
        if event.what != "ended" or held is None:
            return ""
        place, since = event.lease.place, held.told_at_seconds - 1.0
        if event.cause == "start_failed" and not self.engine.failed_since(place, since):
            return "nothing failed there"
        if event.cause == "withdrawn":
            stuck = [*self.engine.slow_stops, *self.truth.hand_stops.values(), *self.truth.gone.values()]
            stuck.append(self.truth.booted_at_seconds)
            hangs = self.engine.trouble or any(one.hang_stop or one.refuse_stop for one in self.engine.servers.values())
            if not hangs and max(stuck) < since - LIFECYCLE.stop_timeout_seconds:
                return "no stop failed, no place is gone, and nobody stopped it by hand"
        return ""

    def _stopping(self, place: Place) -> None:
        """Held against the truth at the moment of the call."""
        self.note_hardness()
        if self.now() - self.hard_at_seconds < HARD_IS_KNOWN_SECONDS:
            return
        for one in self.truth.live_on(place, self.process.clock.now_seconds()):
            self.truth.fault(f"{place} is stopped under the live lease {one.lease.id}")
        since = self.in_flight.get(place)
        if since is not None and not self.engine.failed_since(place, since):
            self.truth.fault(f"{place} is stopped with a request in flight")
        since = self.working.get(place)
        if (
            since is not None
            and self.engine.worked_since(since, self.truth.stop_decided.get(place, self.now()))
            and not self._excuses(place, since)
        ):
            self.truth.fault(f"{place} is stopped while it computes on {self.engine.servers[place].cores} cores")

    def _weighed(self) -> None:
        """At the moment a load begins to take its memory."""
        held = self.engine.held_bytes()
        if held > self.room_bytes() and not self._excused and not self.engine.by_others:
            self.truth.fault(f"truly held: {held} bytes, there is room for {self.room_bytes()}")

    def _excuses(self, place: Place, since: float) -> bool:
        by_hand = self.truth.hand_stops.get(place, float("-inf")) >= since and not self.engine.servers[place].num_ctx
        return by_hand or self.engine.failed_since(place, since)

    async def select(self, asked: Asked) -> Selected | None:
        """As a caller: what it is told counts from the moment it is told."""
        process = self.process
        try:
            selected = await process.desk.select(asked)
        except Exception as fault:
            self.truth.fault(f"select raised {fault!r}")
            return None
        if process is self.process and not process.store.killed:
            self.acknowledge(selected)
        return selected

    def acknowledge(self, selected: Selected) -> None:
        lease, decision = selected.lease, selected.decision
        if lease is None:
            refused = decision.chosen is None and all(one.rejection for one in decision.candidates)
            self.truth.seen["refused" if refused else "no lease"] += 1
            return
        if self.truth.ended[lease.id]:
            self.truth.fault(f"{lease.id} was handed out after its end")
            return
        until = lease.expires_at_seconds
        if until is None:
            until = self.process.clock.now_seconds() + lease.seconds
        durable = until if selected.durable else None
        self.truth.held[lease.id] = Held(
            lease=lease, told_at_seconds=self.now(), until_seconds=until, kept_until_seconds=durable
        )

    # ── invariants ──

    def check(self) -> None:
        """After every step. Raises AssertionError with everything that is wrong."""
        self.note_hardness()
        self._let_go()
        fleet = self.process.controller.view()
        running = frozenset(place for place in PLACES if self.engine.servers[place].running)
        wrong = [*self.truth.faults, *self.engine.faults, *self.process.faults(), *self._errors.told]
        counted = counted_bytes(fleet.places)
        if counted != fleet.reserved_bytes:
            wrong.append(f"the ledger says {fleet.reserved_bytes}, its places count {counted}")
        if self.process.tenancy.ledger.room_bytes is not None:  # else what is promised is placed once that is known
            known = running | self.engine.told_running if self.engine.trouble else running
            wrong += miscounted(fleet, known)  # what went down while the engine could not be asked, nobody can know
        wrong += self._over(counted)
        wrong += self._uncounted(running)
        wrong += self._forgotten()
        assert not wrong, "\n".join([*wrong, "the last events:", *self.story[-LAST_EVENTS:]])

    def _let_go(self) -> None:
        """What went down carries no requests any more."""
        for place in PLACES:
            if not self.engine.servers[place].num_ctx:
                self.in_flight.pop(place, None)
                self.working.pop(place, None)

    def _over(self, counted: int) -> list[str]:
        room = self.room_bytes()
        over = [
            f"{what}: {held} bytes, there is room for {room}"
            for what, held in (("booked", counted), ("truly held", self.engine.held_bytes()))
            if held > room
        ]
        if self.engine.by_others:
            self._excused = True
        elif not over:
            self._excused = False
        return [] if self._excused else over

    def excuse(self) -> None:
        """What runs was found to need more than anybody knew: nothing more is promised, and nothing is taken back."""
        self._excused = True

    def _uncounted(self, running: frozenset[Place]) -> list[str]:
        if len(self.engine.looks) < 3:
            return []
        before = self.engine.looks[-2] - 1.0
        told = []
        for place in sorted(running - self.engine.undeclared):
            view = self.process.controller.view().find(place)
            since = self.engine.servers[place].started_at_seconds or 0.0
            known = view is not None and (view.state in HOLDING or view.budget_bytes)
            settled = view is None or view.since_seconds < before + self.process.clock.now_seconds() - self.now()
            if since < before and settled and not known and place in self.engine.listed:
                told.append(f"{place} runs since {self.now() - since:.0f} s and counts nothing")
        return told

    def _forgotten(self) -> list[str]:
        tenancy, clock = self.process.tenancy, self.process.clock.now_seconds()
        told = [
            f"{lease_id} was granted, is gone and has no end"
            for lease_id, times in self.truth.granted.items()
            if times and not self.truth.ended[lease_id] and self._lost(lease_id)
        ]
        if not self.engine.looks:
            return told
        for lease_id, one in self.truth.held.items():
            status = tenancy.lease(lease_id)
            if one.until_seconds > clock + SLACK_SECONDS and (status is None or status.ended):
                told.append(f"{lease_id} on {one.lease.place} was acknowledged, and nobody knows it")
        return told

    def _lost(self, lease_id: str) -> bool:
        return lease_id in self._own and self.process.tenancy.promises.get(lease_id) is None

    @property
    def _own(self) -> set[str]:
        """Leases granted by the present process."""
        since = self.truth.granted_before
        return {lease_id for lease_id in self.truth.granted if lease_id not in since}

    # ── the end of a schedule ──

    def heal(self) -> None:
        """No fault is left."""
        self.engine.heal()
        self.prometheus.trouble = self.host.trouble = ""
        self.prometheus.clock_error_seconds = 0.0
        self.process.store.settle()
        self.disk.full = False
        self.other_bytes = 0
        self.other_cores = self.stall_ratio = 0.0

    def converge(self) -> None:
        """What is = what should be, once the last fault and what follows from it is over; and a select is served."""
        self.heal()
        self.in_flight.clear()
        for place in self.working:
            self.engine.work(place, 0.0)
        self.working.clear()
        if (pinned := self.process.tenancy.pinned_model) is not None:
            self.run(self.process.operations.act(pinned, "unpin"))
        self.advance(CALM_SECONDS)
        self.check()
        wrong = self._astray()
        assert not wrong, "\n".join(wrong)
        for model in (*self._models_that_fit(), "auto"):
            self.is_served(model)

    def _models_that_fit(self) -> list[str]:
        """By name, with what runs left running."""
        fleet, profiles = self.process.controller.view(), self.process.tally.profiles(self.process.clock.now_seconds())
        free = self.room_bytes() - fleet.reserved_bytes
        needs = {view: profiles.footprint_bytes(view.place.model, 4096) for view in fleet.places}
        fit = [view for view in fleet.places if view.budget_bytes or needs[view] * POLICY.memory_enter_ratio <= free]
        return [self.chance.choice(fit).place.model] if fit else []

    def is_served(self, model: str) -> None:
        asked = Asked(text="hi", complexity="simple", model=model, wait_seconds=60.0)
        selected = self.run(self.select(asked))
        self.check()
        assert selected is not None, "select raised"
        assert selected.lease is not None, selected.decision.sentence
        assert selected.state is PlaceState.READY, selected.state
        assert self.engine.servers[selected.lease.place].num_ctx, "it says ready, and nothing is loaded"
        del self.truth.held[selected.lease.id]
        self.process.tenancy.end(selected.lease.id, "returned")

    def _astray(self) -> list[str]:
        process, tenancy = self.process, self.process.tenancy
        fleet, snapshot = process.controller.view(), process.sampler.snapshot()
        wrong = [f"{view.place} has not come to rest: {view}" for view in fleet.places if not self._at_rest(view.place)]
        if {view.place for view in fleet.places} != set(PLACES):
            wrong.append(f"places: {[str(view.place) for view in fleet.places]}")
        if len(tenancy.promises) or tenancy.promises.claims(process.clock.now_seconds()):
            wrong.append(f"{len(tenancy.promises)} leases or some claims live on")
        lasting = {latch for latch in snapshot.latches if not latch.startswith("memory_short")}
        if lasting or snapshot.freshness.value != "fresh" or snapshot.failing or fleet.failing:
            wrong.append(f"{lasting} {snapshot.freshness} {snapshot.failing} {fleet.failing}")
        if fleet.reserved_bytes != sum(view.budget_bytes for view in fleet.places):
            wrong.append("somebody still waits for somebody's memory")
        if process.clients:
            wrong.append(f"{len(process.clients)} callers were never answered")
        if self.engine.idle():
            asked, told = self.engine.asked, self.truth.acted + self.truth.unreported
            wrong += [f"{key}: {asked[key]} calls, {told[key]} told" for key in asked | told if asked[key] != told[key]]
        return wrong

    def _at_rest(self, place: Place) -> bool:
        view, server = self.process.controller.view().find(place), self.engine.servers[place]
        if view is None:
            return False
        if view.state is PlaceState.STOPPED:
            return not server.running and not view.budget_bytes
        return view.state is PlaceState.READY and server.running and server.num_ctx == view.num_ctx
