"""One life of the daemon in the laboratory: the real rooms, wired as dispatcher.daemon does, without its sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from dispatcher.clock import ManualClock
from dispatcher.control.tally import Tally
from dispatcher.daemon.fleet import fleet_of
from dispatcher.daemon.operations import Operations
from dispatcher.daemon.stream import Stream
from dispatcher.desk import Desk
from dispatcher.errors import NotNow
from dispatcher.lifecycle.controller import Controller
from dispatcher.lifecycle.tenancy import Tenancy
from dispatcher.telemetry.sampler import Sampler
from dispatcher.telemetry.source import Source
from dispatcher.vocabulary.event import Event
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.settings import Settings
from tests.faultlab.disk import Disk, Notebook
from tests.faultlab.engine import FaultyEngine

KEEP_PINNED_SECONDS = 15.0


class StartedClock:
    """As SystemClock: anchored to the wall clock when the process starts, and steady from then on."""

    def __init__(self, steady: ManualClock, offset_seconds: float) -> None:
        self._steady = steady
        self._offset_seconds = offset_seconds

    def now_seconds(self) -> float:
        return self._steady.now_seconds() + self._offset_seconds


class Process:
    """in_flight: what the gateway will say once there is one. jitter: 0..1, of backoffs."""

    def __init__(
        self,
        *,
        settings: Settings,
        engine: FaultyEngine,
        sources: Sequence[Source],
        disk: Disk,
        steady: ManualClock,
        wall_offset_seconds: float,
        in_flight: Callable[[Place], int],
        jitter: Callable[[], float],
        heard: Callable[[Event], None],
    ) -> None:
        """Longer than 50 lines: one line per hand-over, as in the daemon's own composition."""
        self.clock = StartedClock(steady, wall_offset_seconds)
        self.store = Notebook(disk, steady)
        self.tally = Tally({model.name: model.facts() for model in settings.models})
        self.stream = Stream(
            tally=self.tally, store=cast("Any", self.store), settings=lambda: settings, clock=self.clock
        )
        self.stream.listeners = (heard,)
        self.sampler = Sampler(
            settings=lambda: settings,
            clock=self.clock,
            sources=lambda: sources,
            fleet=lambda: self.controller.view(),
            profiles=self._profiles,
            emit=self.stream.emit,
        )
        self.controller = Controller(
            provider=engine,
            settings=lambda: settings,
            clock=self.clock,
            snapshot=self.sampler.snapshot,
            profiles=self._profiles,
            emit=self.stream.emit,
            in_flight=in_flight,
            jitter=jitter,
        )
        self.desk = Desk(
            fleet=fleet_of(self.controller),
            snapshot=self.sampler.snapshot,
            profiles=self._profiles,
            settings=lambda: settings,
            clock=self.clock,
            emit=self.stream.emit,
            record_lease=self.store.record_lease,
        )
        self.operations = Operations(
            desk=self.desk,
            controller=self.controller,
            store=cast("Any", self.store),
            settings=lambda: settings,
            clock=self.clock,
            emit=self.stream.emit,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.clients: set[asyncio.Task[None]] = set()

    @property
    def tenancy(self) -> Tenancy:
        return self.controller.tenancy

    def _profiles(self):
        return self.tally.profiles(self.clock.now_seconds())

    async def boot(self) -> None:
        """Promises first, one look before anybody is answered, then the loops."""
        self.controller.restore(self.store.leases())
        self.tenancy.pinned_model = self.store.pinned_model()
        await self.sampler.poll_once()
        await self.controller.prepare()
        self._tasks = [
            asyncio.create_task(self.controller.run(), name="lifecycle"),
            asyncio.create_task(self.sampler.run(), name="telemetry"),
            asyncio.create_task(self._keep_pinned(), name="keep_pinned"),
        ]

    async def kill(self) -> None:
        """As kill -9: whatever its tasks do at their end, nobody outside sees it."""
        self.store.killed = True
        self.stream.listeners = ()
        for task in (*self._tasks, *self.clients):
            task.cancel()
        await asyncio.gather(*self._tasks, *self.clients, return_exceptions=True)

    def faults(self) -> list[str]:
        """Loops that ended by themselves."""
        return [f"{task.get_name()} ended: {task.exception()!r}" for task in self._tasks if task.done()]

    async def _keep_pinned(self) -> None:
        while True:
            await asyncio.sleep(KEEP_PINNED_SECONDS)
            with suppress(NotNow):
                self.operations.keep_pinned()
