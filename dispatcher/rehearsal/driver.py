"""The engine on the wall clock: who asked, what became of it, and the memory that goes with it. No HTTP here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial

from dispatcher.rehearsal.memory import MemoryHolder
from dispatcher.rehearsal.noise import NoiseSource
from dispatcher.replay.asks import Ask, Event, Fault, Finished, LoadStarted, Refused, RunnerGone, Token
from dispatcher.replay.engine import Engine
from dispatcher.replay.models import Limits, RehearsalModel
from dispatcher.replay.troubles import Troubles

_LONGEST_TIMER_SECONDS = 3600.0  # keep_alive -1 expires in 292 years: longer than timers count


class Ticket:
    """One request in the engine, and what is told about it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._told: asyncio.Queue[Token | Finished | Refused | None] = asyncio.Queue()

    def tell(self, event: Token | Finished | Refused | None) -> None:
        self._told.put_nowait(event)

    async def next(self) -> Token | Finished | Refused | None:
        """None: given up, its client left."""
        return await self._told.get()


class Driver:
    """Owns the engine. Everything here runs in one event loop, and nothing blocks it."""

    def __init__(
        self, models: Mapping[str, RehearsalModel], limits: Limits, *, seed: int = 0, allocate: bool = False
    ) -> None:
        self.engine = Engine(models, limits)
        self.faults: tuple[Fault, ...] = ()
        self._noise = NoiseSource(seed)
        self._allocate = allocate
        self._tickets: dict[int, Ticket] = {}
        self._holders: dict[str, MemoryHolder] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._audible = asyncio.Event()
        self._audible.set()
        self._unix_offset_seconds = time.time() - time.monotonic()
        self._began_at_seconds = self.now_seconds()

    def now_seconds(self) -> float:
        """Unix seconds that never go back: the wall clock is read once, at the start."""
        return time.monotonic() + self._unix_offset_seconds

    def submit(self, ask: Ask) -> Ticket:
        now_seconds = self.now_seconds()
        number = self.engine.submit(now_seconds, ask, self._noise.at(now_seconds - self._began_at_seconds))
        ticket = self._tickets[number] = Ticket(number)
        self._turn()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Its client left, or nobody wants to hear more. Of one that has ended: nothing."""
        if self._tickets.pop(ticket.number, None) is not None:
            self.engine.cancel(self.now_seconds(), ticket.number)
            ticket.tell(None)
            self._turn()

    def unload(self, model: str) -> None:
        self.engine.unload(self.now_seconds(), model)
        self._turn()

    def kill_runner(self, model: str) -> None:
        self.engine.kill_runner(self.now_seconds(), model)
        self._turn()

    def set_faults(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        self.engine.set_faults(self.now_seconds(), faults)
        if Troubles(faults).stalled:
            self._audible.clear()
        else:
            self._audible.set()
        self._turn()

    def cut_tokens(self, model: str) -> int | None:
        return Troubles(self.faults).cut_tokens(model)

    async def audible(self) -> None:
        """Returns when the server may say something: at once, unless the fault `silent` is in force."""
        await self._audible.wait()

    async def stop(self) -> None:
        """Frees everything. Whoever still waits is told nothing more came."""
        if self._timer is not None:
            self._timer.cancel()
        for ticket in self._tickets.values():
            ticket.tell(None)
        self._tickets.clear()
        self._audible.set()
        for model in list(self._holders):
            self._release(model)
        await asyncio.gather(*self._releases)

    def _turn(self) -> None:
        """Tell what happened, and come back when something will."""
        now_seconds = self.now_seconds()
        for event in self.engine.advance(now_seconds):
            self._tell(event)
        if self._timer is not None:
            self._timer.cancel()
        due = self.engine.next_event_at()
        if due is not None:
            delay_seconds = min(_LONGEST_TIMER_SECONDS, max(0.0, due - now_seconds))
            self._timer = asyncio.get_running_loop().call_later(delay_seconds, self._turn)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Token):
            if event.request in self._tickets:
                self._tickets[event.request].tell(event)
        elif isinstance(event, (Finished, Refused)):
            if (ticket := self._tickets.pop(event.request, None)) is not None:
                ticket.tell(event)
        elif isinstance(event, LoadStarted):
            if self._allocate:
                self._hold(event)
        elif isinstance(event, RunnerGone) or not event.loaded:
            self._release(event.model)

    def _hold(self, event: LoadStarted) -> None:
        self._release(event.model)
        self._holders[event.model] = MemoryHolder(
            event.resident_bytes,
            event.load_seconds,
            after=self._releases,
            ended=partial(self._load_ended, event.model),
            died=partial(self.kill_runner, event.model),
        )

    def _load_ended(self, model: str, loaded: bool) -> None:
        self.engine.end_load(self.now_seconds(), model, loaded=loaded)
        self._turn()

    def _release(self, model: str) -> None:
        holder = self._holders.pop(model, None)
        if holder is not None:
            task = asyncio.create_task(holder.release(), name=f"rehearsal-release-{model}")
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)
