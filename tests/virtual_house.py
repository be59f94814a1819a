"""A house in virtual time: controller, desk, ledger and profiles, all real, around a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from dispatcher.clock import ManualClock
from dispatcher.control.tally import Tally
from dispatcher.daemon.fleet import fleet_of
from dispatcher.desk import Desk
from dispatcher.errors import HistoryUnavailable
from dispatcher.lifecycle.controller import Controller
from dispatcher.vocabulary.decision import Selected
from dispatcher.vocabulary.event import Acted, Decided, Erred, Event, Leased, Turned
from dispatcher.vocabulary.fleet import NOT_BREAKING, Breaking, Lease, Place, PlaceState, PlaceView
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB, LifecycleSettings, Settings
from dispatcher.vocabulary.signal import HOST, Freshness, Reading, Snapshot
from tests.builders import LLAMA, PHI, QWEN
from tests.fake_engine import FakeEngine


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
    breaker: Callable[[Place], Breaking] = lambda place: NOT_BREAKING
    events: list[Event] = field(default_factory=list)
    recorded: list[Lease] = field(default_factory=list)
    disk_full: bool = False
    outlives_faults: bool = False  # a test makes them
    controller: Controller = field(init=False)
    desk: Desk = field(init=False)
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.tally = Tally({model.name: model.facts() for model in self.settings.models})
        self.controller = self.another_controller()
        self.desk = Desk(
            fleet=fleet_of(self.controller),
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
            breaker=lambda place: self.breaker(place),
            jitter=lambda: self.jitter_ratio,
        )

    @asynccontextmanager
    async def open(self, controller: Controller | None = None):
        """The controller's loop runs, and its first look is done."""
        controller = controller or self.controller
        loop = asyncio.create_task(controller.run(), name="controller")
        try:
            while controller.reconciled_at_seconds is None and not loop.done():  # noqa: ASYNC110  as below
                await asyncio.sleep(0.01)
            yield self
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            fault = None if loop.cancelled() else loop.exception()
        if fault is not None:
            raise fault
        faults = [event for event in self.events if isinstance(event, Erred)]
        assert self.outlives_faults or not faults, "a fault of ours was outlived: the log shows it"
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
            readings={
                (name, HOST): Reading(value=value, at_seconds=now, source="host") for name, value in values.items()
            },
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
        return {
            event.lease.id: event.cause for event in self.events if isinstance(event, Leased) and event.what == "ended"
        }

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
            while not true():  # noqa: ASYNC110  virtual time: looking again costs nothing
                await asyncio.sleep(0.05)

    async def use(self, asked: Asked, *, work_seconds: float):
        """What a workflow does: select, call the model, report the outcome."""
        selected = await self.desk.select(asked)
        if selected.lease is not None and selected.state is PlaceState.READY:
            place = selected.lease.place
            self.engine.work(place, self.engine.servers[place].cores + 2.0)
            try:
                await asyncio.sleep(work_seconds)
            finally:  # a client that leaves ends its request; its lease ends with its time
                self.engine.work(place, max(0.0, self.engine.servers[place].cores - 2.0))
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


async def ready(house: House, place: Place, *, dwelt: bool = True, **lease) -> Lease:
    """Leased, and its lease's place ready; out of its dwell unless told otherwise."""
    given = house.lease(place, seconds=900.0, **lease)
    await house.until(lambda: house.state(place) is PlaceState.READY)
    if dwelt:
        await asyncio.sleep(60.0)
    return given


async def up(house: House, place: Place, *, dwelt: bool = True) -> None:
    house.controller.hold(place, 4096, (), "asked")
    await house.until(lambda: house.state(place) is PlaceState.READY)
    if dwelt:
        await asyncio.sleep(60.0)


def told(selected: Selected) -> tuple:
    return (selected.decision.chosen and selected.decision.chosen.place, selected.state, selected.lease is not None)
