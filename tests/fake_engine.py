"""An engine that only exists in virtual time.

FakeEngine satisfies lifecycle.provider.Provider. It is strict where a real engine is: what is loaded takes memory from
the moment its load begins until it is stopped, two commands at one place at a time are noted as a fault, and a stopped
place does not answer. Durations and failures are set per place. tests/virtual_house.py puts a house around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dispatcher.clock import ManualClock
from dispatcher.errors import EngineRefused, EngineUnreachable, OutOfMemory, PlaceNotOurs
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from tests.builders import LLAMA, PHI, QWEN, some_profiles
from tests.rehearsed import Rehearsed


@dataclass
class FakeServer:
    """One place. fail_starts and fail_loads count down; hangs last until set to False or cancelled."""

    place: Place
    start_seconds: float = 0.3
    load_seconds: float = 4.0
    stop_seconds: float = 1.0
    fail_starts: int = 0
    fail_loads: int = 0
    oom_loads: int = 0  # ended by the kernel
    start_goes_on: bool = False  # as Docker's does, though its caller has left
    coming_up: asyncio.Task[None] | None = None
    paused: bool = False
    silent: bool = False  # its model server is dead, its container runs
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
    disowned: bool = False  # it has lost its labels since it was listed
    port_at_start: bool = False  # nobody knows where it can be called before it runs
    at_work: str = ""
    rehearsed: Rehearsed | None = None  # loads take as long as its simulated server needs, instead of load_seconds


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
        if self.list_seconds:  # 0: not even a step of the loop, the hardest case for whoever relies on one
            await asyncio.sleep(self.list_seconds)
        if self.unreachable is not None:
            raise EngineUnreachable(self.unreachable)
        return [self._seen(server) for server in self.servers.values()]

    async def start(self, place: Place) -> None:
        server = self._at_work(place, "start")
        try:
            if server.start_goes_on:
                server.coming_up = asyncio.create_task(self._come_up(server))
                await asyncio.shield(server.coming_up)
                return
            await asyncio.sleep(server.start_seconds)
            self._reachable()
            if server.fail_starts > 0:
                server.fail_starts -= 1
                raise EngineRefused(f"{place} would not start")
            self._run(server)
        finally:
            server.at_work = ""

    async def _come_up(self, server: FakeServer) -> None:
        await asyncio.sleep(server.start_seconds)
        self._run(server)

    def _run(self, server: FakeServer) -> None:
        if not server.running:
            if server.rehearsed is not None:
                server.rehearsed.empty()
            server.running, server.exit_code, server.oom_killed = True, None, False
            server.started_at_seconds = self._clock.now_seconds()
        self._note("started", server.place)

    async def answers(self, place: Place, endpoint: str) -> bool | None:
        server = self.servers[place]
        return server.running and not server.silent and not server.paused

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
            if server.rehearsed is not None:
                await server.rehearsed.load(num_ctx)
            else:
                await asyncio.sleep(server.load_seconds)
            self._reachable()
            if server.fail_loads > 0:
                server.fail_loads -= 1
                raise EngineRefused(f"{place} could not load its model")
            if server.oom_loads > 0:
                server.oom_loads -= 1
                self.down(place, exit_code=137, oom_killed=True)
                raise OutOfMemory(f"{place} ended while it was loading: killed for want of memory")
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
            if server.coming_up is not None:
                await asyncio.shield(server.coming_up)  # an engine does one after the other
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

    def work(self, place: Place, cores: float) -> None:
        """From now on it computes on so many cores."""
        self._compute(self.servers[place])
        self.servers[place].cores = cores

    def tell(self) -> None:
        """The engine's event stream says that something changed."""
        self._woken.set()

    def held_bytes(self) -> int:
        """A load whose server went down meanwhile holds nothing, although its caller has not heard of that yet."""
        held = [(one.place, one.loading or one.num_ctx) for one in self.servers.values() if one.running]
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
        if server.disowned:
            raise PlaceNotOurs(f"{place} carries no label of ours")
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

    def _compute(self, server: FakeServer) -> float:
        now = self._clock.now_seconds()
        server.cpu_seconds += server.cores * (now - (server.cpu_at_seconds or now))
        server.cpu_at_seconds = now
        return now

    def _seen(self, server: FakeServer) -> PlaceSeen:
        now = self._compute(server)
        loaded = server.num_ctx is not None
        answers = not (server.silent or server.paused) if server.running else None
        return PlaceSeen(
            place=server.place,
            running=server.running,
            answers=answers,
            loaded=loaded if answers else None,
            loaded_num_ctx=server.num_ctx if answers else None,
            paused=server.paused,
            because="its container is paused" if server.paused else "no answer" if server.silent else "",
            endpoint=None if server.port_at_start and not server.running else "http://127.0.0.1:21000",
            endpoint_later=server.port_at_start and not server.running,
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
