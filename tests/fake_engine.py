"""An engine that only exists in virtual time, and a house around it: controller, desk, ledger, profiles, all real.

FakeEngine satisfies lifecycle.provider.Provider. It is strict where a real engine is: what is loaded takes memory from
the moment its load begins until it is stopped, two commands at one place at a time are noted as a fault, and a stopped
place does not answer. Durations and failures are set per place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from dispatcher.clock import ManualClock
from dispatcher.control.tally import Tally
from dispatcher.desk import Desk, Fleet
from dispatcher.errors import EngineRefused, EngineUnreachable, HistoryUnavailable, PlaceNotOurs
from dispatcher.lifecycle.controller import Controller
from dispatcher.vocabulary.event import Acted, Decided, Event, Leased, Turned
from dispatcher.vocabulary.fleet import Lease, Place, PlaceSeen, PlaceState, PlaceView
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB, LifecycleSettings, Settings
from dispatcher.vocabulary.signal import HOST, Freshness, Reading, Snapshot
from tests.builders import LLAMA, PHI, QWEN, some_profiles


@dataclass
class FakeServer:
    """One place. fail_starts and fail_loads count down; hangs last until set to False or cancelled."""

    place: Place
    start_seconds: float = 0.3
    load_seconds: float = 4.0
    stop_seconds: float = 1.0
    fail_starts: int = 0
    fail_loads: int = 0
    hang_load: bool = False
    refuse_stop: bool = False  # says no at once
    hang_stop: bool = False
    running: bool = False
    num_ctx: int | None = None  # loaded
    loading: int | None = None  # being loaded
    cores: float = 0.0
    cpu_seconds: float = 0.0
    cpu_at_seconds: float = 0.0
    started_at_seconds: float | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    limit_bytes: int | None = None
    installed: bool = True
    at_work: str = ""


@dataclass(frozen=True)
class Call:
    at_seconds: float
    verb: str  # start load stop, and the same with "ed" when they came to their end
    place: Place
    num_ctx: int | None = None


class FakeEngine:
    name = "docker"
    rehearsal = False
    local = True

    def __init__(self, clock: ManualClock, places: Sequence[Place] = (PHI, LLAMA, QWEN), **everywhere) -> None:
        self._clock = clock
        self._woken = asyncio.Event()
        self.servers = {place: FakeServer(place, **everywhere) for place in places}
        self.unreachable: str | None = None
        self.list_seconds = 0.01
        self.foreign = 0
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.peak_bytes = 0
        self.byte_seconds = 0.0  # memory held by models, integrated over time
        self._counted_at_seconds = clock.now_seconds()

    # ── Provider ──

    async def list(self) -> Sequence[PlaceSeen]:
        await asyncio.sleep(self.list_seconds)
        if self.unreachable is not None:
            raise EngineUnreachable(self.unreachable)
        return [self._seen(server) for server in self.servers.values()]

    async def start(self, place: Place) -> None:
        server = self._at_work(place, "start")
        try:
            await asyncio.sleep(server.start_seconds)
            self._reachable()
            if server.fail_starts > 0:
                server.fail_starts -= 1
                raise EngineRefused(f"{place} would not start")
            if not server.running:
                server.running, server.exit_code, server.oom_killed = True, None, False
                server.started_at_seconds = self._clock.now_seconds()
            self._note("started", place)
        finally:
            server.at_work = ""

    async def load(self, place: Place, num_ctx: int) -> float:
        server = self._at_work(place, "load", num_ctx)
        began = self._clock.now_seconds()
        try:
            if not server.running:
                raise EngineRefused(f"{place} does not run")
            if server.num_ctx == num_ctx:
                return 0.0
            self.count()
            server.num_ctx, server.loading = None, num_ctx
            self._weigh()
            if server.hang_load:
                await asyncio.Event().wait()
            await asyncio.sleep(server.load_seconds)
            self._reachable()
            if server.fail_loads > 0:
                server.fail_loads -= 1
                raise EngineRefused(f"{place} could not load its model")
            if not server.running:
                raise EngineRefused(f"{place} ended while it was loading")
            server.num_ctx = num_ctx
            self._note("loaded", place, num_ctx)
            return self._clock.now_seconds() - began
        finally:
            self.count()
            server.loading = None
            server.at_work = ""

    async def stop(self, place: Place) -> None:
        server = self._at_work(place, "stop")
        try:
            if server.refuse_stop:
                raise EngineRefused(f"{place} would not stop")
            if server.hang_stop:
                await asyncio.Event().wait()
            await asyncio.sleep(server.stop_seconds if server.running else 0.0)
            self._reachable()
            self.down(place, exit_code=0)
            self._note("stopped", place)
        finally:
            server.at_work = ""

    async def wake(self) -> None:
        await self._woken.wait()
        self._woken.clear()

    def foreign_bytes(self) -> int:
        return self.foreign

    async def close(self) -> None:
        pass

    # ── what a test does to it, and reads of it ──

    def down(self, place: Place, exit_code: int = 0, *, oom_killed: bool = False) -> None:
        """It does not run any more: stopped, crashed or killed."""
        self.count()
        server = self.servers[place]
        server.running, server.num_ctx, server.cores = False, None, 0.0
        server.exit_code, server.oom_killed = exit_code, oom_killed

    def up(self, place: Place, num_ctx: int | None = 4096) -> None:
        """Somebody else started it, and loaded it unless num_ctx is None."""
        self.count()
        server = self.servers[place]
        server.running, server.num_ctx = True, num_ctx
        server.started_at_seconds = self._clock.now_seconds()
        self._weigh()

    def tell(self) -> None:
        """The engine's event stream says that something changed."""
        self._woken.set()

    def held_bytes(self) -> int:
        held = [(server.place, server.loading or server.num_ctx) for server in self.servers.values()]
        return sum(footprint(place, num_ctx) for place, num_ctx in held if num_ctx)

    def count(self) -> None:
        now = self._clock.now_seconds()
        self.byte_seconds += self.held_bytes() * (now - self._counted_at_seconds)
        self._counted_at_seconds = now

    def did(self, verb: str, place: Place | None = None) -> list[Call]:
        return [call for call in self.calls if call.verb == verb and place in (None, call.place)]

    def _at_work(self, place: Place, verb: str, num_ctx: int | None = None) -> FakeServer:
        self._reachable()
        server = self.servers.get(place)
        if server is None:
            raise PlaceNotOurs(f"{place} is not declared")
        if server.at_work:
            self.faults.append(f"{verb} at {place} during {server.at_work}")
        server.at_work = verb
        self._note(verb, place, num_ctx)
        return server

    def _reachable(self) -> None:
        if self.unreachable is not None:
            raise EngineUnreachable(self.unreachable)

    def _note(self, verb: str, place: Place, num_ctx: int | None = None) -> None:
        self.calls.append(Call(self._clock.now_seconds(), verb, place, num_ctx))

    def _weigh(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.held_bytes())

    def _seen(self, server: FakeServer) -> PlaceSeen:
        now = self._clock.now_seconds()
        server.cpu_seconds += server.cores * (now - (server.cpu_at_seconds or now))
        server.cpu_at_seconds = now
        loaded = server.num_ctx is not None
        return PlaceSeen(
            place=server.place,
            running=server.running,
            answers=True if server.running else None,
            loaded=loaded if server.running else None,
            loaded_num_ctx=server.num_ctx,
            endpoint="http://127.0.0.1:21000",
            memory_limit_bytes=server.limit_bytes,
            memory_used_bytes=footprint(server.place, server.num_ctx) if server.num_ctx else None,
            cpu_seconds_total=server.cpu_seconds if server.running else None,
            cpu_at_seconds=now if server.running else None,
            started_at_seconds=server.started_at_seconds if server.running else None,
            exit_code=None if server.running else server.exit_code,
            oom_killed=server.oom_killed,
            installed=server.installed,
        )


def footprint(place: Place, num_ctx: int = 4096) -> int:
    return some_profiles().footprint_bytes(place.model, num_ctx)


@dataclass
class House:
    """A controller, a desk and what they live on, in virtual time. Nothing in it is a mock but the engine.

    total_bytes: the host's; other_bytes: what its other workload uses. snapshot: replaces the measured one when set.
    """

    clock: ManualClock
    engine: FakeEngine
    settings: Settings
    total_bytes: int
    other_bytes: int = 0
    snapshot: Callable[[], Snapshot] | None = None
    jitter_ratio: float = 1.0
    in_flight: dict[Place, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    recorded: list[Lease] = field(default_factory=list)
    disk_full: bool = False
    controller: Controller = field(init=False)
    desk: Desk = field(init=False)
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.tally = Tally({model.name: model.facts() for model in self.settings.models})
        self.controller = self.another_controller()
        tenancy = self.controller.tenancy
        self.desk = Desk(
            fleet=Fleet(
                view=self.controller.view,
                reserve=lambda place, num_ctx, evicts, decision_id, seconds: tenancy.reserve(
                    place=place, num_ctx=num_ctx, evicts=evicts, decision_id=decision_id, seconds=seconds
                ),
                end=tenancy.end,
                claim=tenancy.claim,
                unclaim=tenancy.unclaim,
                ready=self.controller.ready,
                changed=self.controller.changed,
            ),
            snapshot=self.measured,
            profiles=lambda: self.tally.profiles(self.clock.now_seconds()),
            settings=lambda: self.settings,
            clock=self.clock,
            emit=self.emit,
            record_lease=self._record_lease,
        )

    def another_controller(self) -> Controller:
        """As after a restart of the daemon: the same engine, nothing remembered."""
        return Controller(
            provider=self.engine,
            settings=lambda: self.settings,
            clock=self.clock,
            snapshot=self.measured,
            profiles=lambda: self.tally.profiles(self.clock.now_seconds()),
            emit=self.emit,
            in_flight=lambda place: self.in_flight.get(place, 0),
            jitter=lambda: self.jitter_ratio,
        )

    @asynccontextmanager
    async def open(self, controller: Controller | None = None):
        """The controller's loop runs, and its first look is done."""
        controller = controller or self.controller
        loop = asyncio.create_task(controller.run(), name="controller")
        try:
            while controller.reconciled_at_seconds is None and not loop.done():
                await asyncio.sleep(0.01)
            yield self
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            fault = None if loop.cancelled() else loop.exception()
        if fault is not None:
            raise fault
        assert not self.engine.faults, self.engine.faults

    def measured(self) -> Snapshot:
        """Read off the host this moment, once in five seconds."""
        if self.snapshot is not None:
            return self.snapshot()
        now = self.clock.now_seconds()
        values = {
            "host_memory_available_bytes": float(self.total_bytes - self.other_bytes - self.engine.held_bytes()),
            "host_memory_total_bytes": float(self.total_bytes),
            "host_cpu_busy_ratio": 0.1,
            "host_cpu_count": 4.0,
        }
        return Snapshot(
            number=int(now // 5),
            at_seconds=now,
            readings={(name, HOST): Reading(value=value, at_seconds=now, source="host") for name, value in values.items()},
            source="host",
            freshness=Freshness.FRESH,
        )

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.tally.on_event(event, self.clock.now_seconds())

    async def _record_lease(self, lease: Lease) -> None:
        await asyncio.sleep(0.002)
        if self.disk_full:
            raise HistoryUnavailable("the disk is full")
        self.recorded.append(lease)

    # ── reading ──

    def view(self, place: Place) -> PlaceView:
        found = self.controller.view().find(place)
        assert found is not None, f"{place} is not there"
        return found

    def state(self, place: Place) -> PlaceState:
        return self.view(place).state

    def turns(self, place: Place) -> list[str]:
        return [event.after for event in self.events if isinstance(event, Turned) and event.place == place]

    def ends(self) -> dict[str, str]:
        """Lease id → why it ended."""
        return {event.lease.id: event.cause for event in self.events if isinstance(event, Leased) and event.what == "ended"}

    def acted(self) -> list[Acted]:
        return [event for event in self.events if isinstance(event, Acted)]

    def decided(self) -> list[Decided]:
        return [event for event in self.events if isinstance(event, Decided)]

    def live_leases(self) -> int:
        return len(self.controller.tenancy.promises)

    # ── doing ──

    def lease(self, place: Place, *, num_ctx: int = 4096, evicts: Sequence[Place] = (), seconds: float = 60.0) -> Lease:
        """Straight from the owner, without a decision; it must be granted."""
        given = self.controller.tenancy.reserve(
            place=place, num_ctx=num_ctx, evicts=evicts, decision_id=f"d-{len(self.events)}", seconds=seconds
        )
        assert isinstance(given, Lease), given
        return given

    def give_back(self, lease: Lease | None, cause: str = "returned") -> None:
        assert lease is not None, "there is no lease to give back"
        self.controller.tenancy.end(lease.id, cause)

    async def until(self, true: Callable[[], bool], *, within_seconds: float = 600.0) -> None:
        async with asyncio.timeout(within_seconds):
            while not true():
                await asyncio.sleep(0.05)

    async def use(self, asked: Asked, *, work_seconds: float):
        """What a workflow does: select, call the model, report the outcome."""
        selected = await self.desk.select(asked)
        if selected.lease is not None and selected.state is PlaceState.READY:
            server = self.engine.servers[selected.lease.place]
            server.cores += 2.0
            await asyncio.sleep(work_seconds)
            server.cores = max(0.0, server.cores - 2.0)
            self.give_back(selected.lease, "outcome")
        return selected


def a_house(
    clock: ManualClock,
    *,
    places: Sequence[Place] = (PHI, LLAMA, QWEN),
    total_bytes: int = 16 * GIB,
    other_bytes: int = 0,
    engine: dict[str, object] | None = None,
    **rules,
) -> House:
    """rules: changes of LifecycleSettings."""
    settings = replace(Settings(), lifecycle=LifecycleSettings(**rules))
    return House(
        clock=clock,
        engine=FakeEngine(clock, places, **(engine or {})),
        settings=settings,
        total_bytes=total_bytes,
        other_bytes=other_bytes,
    )
