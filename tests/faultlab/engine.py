"""The fake container engine of the laboratory: what it was told to do it does to the end, also when its caller is dead.

More than tests.fake_engine: a start and a stop belong to the engine (Docker's do), calls can be refused, answered 500
or hang, containers vanish, come back without our label, exit, are killed and are moved by others. It keeps its own
record of what truly happened; nothing in it asks the dispatcher.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from dispatcher.clock import ManualClock
from dispatcher.errors import EngineRefused, EngineUnreachable, PlaceNotOurs
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from tests.builders import LLAMA, PHI, QWEN
from tests.fake_engine import FakeEngine, FakeServer

PLACES = (PHI, LLAMA, QWEN)
BYSTANDER = Place(server="docker:postgres", model="phi3:mini")  # runs beside them, and carries no label of ours


class FaultyEngine(FakeEngine):
    """trouble: how every call to the engine ends: "" (as it should), refused, broken (500) or hangs.

    wall_offset_seconds: of the machine's wall clock, by which the engine stamps what it measures.
    """

    def __init__(self, clock: ManualClock, wall_offset_seconds: Callable[[], float]) -> None:
        super().__init__(clock, PLACES)
        self._wall_offset_seconds = wall_offset_seconds
        self.servers[BYSTANDER] = FakeServer(BYSTANDER, running=True)
        self.trouble = ""
        self.undeclared: set[Place] = {BYSTANDER}
        self.by_others: set[Place] = set()  # running as somebody else wanted it
        self.hung_starts: set[Place] = set()
        self.asked: Counter[tuple[str, Place]] = Counter()  # start and stop calls of the present process
        self.failures: dict[Place, list[float]] = {}  # failed starts, loads and runs, and places gone
        self._made: Counter[Place] = Counter()
        self.slow_stops: list[float] = []  # began, and did not end as they should
        self.looks: list[float] = []  # answered, for the present process
        self.listed: frozenset[Place] = frozenset()
        self.told_running: frozenset[Place] = frozenset()  # as of the last look that was answered
        self.coming_up: set[Place] = set()
        self.orphans: set[Place] = set()  # asked to start by a process that is dead
        self.stepped_at_seconds = float("-inf")  # its wall clock, last
        self.stopping: Callable[[Place], None] = lambda place: None
        self.weighed: Callable[[], None] = lambda: None  # more memory is held than a moment ago
        self._jobs: set[asyncio.Task[None]] = set()
        self._turn: dict[Place, asyncio.Lock] = {}

    # ── Provider ──

    async def list(self) -> Sequence[PlaceSeen]:
        await asyncio.sleep(self.list_seconds)
        await self._answer()
        declared = [server for server in self.servers.values() if server.place not in self.undeclared]
        self.listed = frozenset(server.place for server in declared)
        self.told_running = frozenset(server.place for server in declared if server.running)
        self.looks.append(self._clock.now_seconds())
        return [self._stamped(self._seen(server)) for server in declared]

    async def start(self, place: Place) -> None:
        self.asked["start", place] += 1
        server = self._commanded(place, "start")
        try:
            await self._answer()
            self._declared(place)
            if server.fail_starts > 0:
                server.fail_starts -= 1
                raise EngineRefused(f"{place} would not start")
            await self._job(self._bring_up(server))
        except BaseException:
            self._failed(place)
            raise
        finally:
            server.at_work = ""

    async def load(self, place: Place, num_ctx: int) -> float:
        try:
            self._declared(place)
            seconds = await super().load(place, num_ctx)
        except BaseException:
            self._failed(place)
            raise
        if seconds:
            self.by_others.discard(place)
        return seconds

    async def stop(self, place: Place) -> None:
        self.asked["stop", place] += 1
        self.stopping(place)
        server = self._commanded(place, "stop")
        try:
            await self._answer()
            self._declared(place)
            if server.refuse_stop:
                raise EngineRefused(f"{place} would not stop")
            await self._job(self._bring_down(server))
        except BaseException:
            self.slow_stops.append(self._clock.now_seconds())
            raise
        finally:
            server.at_work = ""

    async def answers(self, place: Place, endpoint: str) -> bool | None:
        return None if place in self.undeclared else await super().answers(place, endpoint)

    # ── what happens in it ──

    async def _bring_up(self, server: FakeServer) -> None:
        self.coming_up.add(server.place)
        made = self._made[server.place]
        async with self._in_turn(server.place):
            await asyncio.sleep(server.start_seconds)
            while server.place in self.hung_starts:  # noqa: ASYNC110
                await asyncio.sleep(1.0)
            if server.place not in self.undeclared and made == self._made[server.place]:
                self._run(server)
                if server.place in self.orphans:
                    self.by_others.add(server.place)
            self.orphans.discard(server.place)
            self.coming_up.discard(server.place)

    async def _bring_down(self, server: FakeServer) -> None:
        async with self._in_turn(server.place):
            await asyncio.sleep(server.stop_seconds if server.running else 0.0)
            while server.hang_stop:  # noqa: ASYNC110
                await asyncio.sleep(1.0)
            self.down(server.place, exit_code=0)
            self._note("stopped", server.place)

    def _in_turn(self, place: Place) -> asyncio.Lock:
        return self._turn.setdefault(place, asyncio.Lock())

    async def _job(self, work: Coroutine[Any, Any, None]) -> None:
        """The engine's own: who asked for it may leave."""
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        await asyncio.shield(job)

    async def _answer(self) -> None:
        if self.trouble == "refused":
            raise EngineUnreachable("connection refused")
        if self.trouble == "broken":
            raise EngineRefused("the engine is broken", status=500)
        while self.trouble == "hangs":  # noqa: ASYNC110  virtual time: looking again costs nothing
            await asyncio.sleep(1.0)

    def _commanded(self, place: Place, verb: str) -> FakeServer:
        """Noted, and a fault of the dispatcher's when it could know better."""
        server = self.servers[place]
        if place not in self.listed:
            self.faults.append(f"{verb} of {place}, which the last list did not name")
        if server.at_work:
            self.faults.append(f"{verb} at {place} during {server.at_work}")
        server.at_work = verb
        self._note(verb, place)
        return server

    def _weigh(self) -> None:
        super()._weigh()
        self.weighed()

    def _declared(self, place: Place) -> None:
        if place in self.undeclared:
            raise PlaceNotOurs(f"{place} is not declared")

    def _failed(self, place: Place) -> None:
        self.failures.setdefault(place, []).append(self._clock.now_seconds())

    def _stamped(self, seen: PlaceSeen) -> PlaceSeen:
        at = seen.cpu_at_seconds
        return seen if at is None else replace(seen, cpu_at_seconds=at + self._wall_offset_seconds())

    # ── what the laboratory does to it ──

    def down(self, place: Place, exit_code: int = 0, *, oom_killed: bool = False) -> None:
        super().down(place, exit_code, oom_killed=oom_killed)
        self.by_others.discard(place)
        if exit_code or oom_killed:
            self._failed(place)

    def up(self, place: Place, num_ctx: int | None = 4096) -> None:
        self.by_others.add(place)
        super().up(place, num_ctx)

    def vanish(self, place: Place) -> None:
        """Removed with what it ran; or made anew without our label, which is the same to us."""
        self.down(place, exit_code=137)
        self._made[place] += 1  # what is declared there later is another container: an old start does not run it
        self.undeclared.add(place)

    def forget_caller(self) -> None:
        """The process that called is gone."""
        self.asked.clear()
        self.looks.clear()
        self.orphans |= self.coming_up
        for server in self.servers.values():
            server.at_work = ""

    def silence(self, place: Place, *, silent: bool = False, paused: bool = False) -> None:
        """Both at once when neither is given: it answers again."""
        server = self.servers[place]
        if server.silent or server.paused or silent or paused:
            self._failed(place)  # from here on, or until now, it did not do what it was promised for
        server.silent, server.paused = silent, paused

    def answers_again(self) -> None:
        if self.trouble:
            self.slow_stops.append(self._clock.now_seconds())  # one that was under way took at least until now
        self.trouble = ""

    def heal(self) -> None:
        self.answers_again()
        self.undeclared = {BYSTANDER}
        self.hung_starts.clear()
        for server in self.servers.values():
            server.fail_starts = server.fail_loads = server.oom_loads = 0
            server.hang_load = server.hang_stop = server.refuse_stop = False
            self.silence(server.place)

    async def end(self) -> None:
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def idle(self) -> bool:
        return not self._jobs

    def failed_since(self, place: Place, at_seconds: float) -> bool:
        """Or it fails now: it is there and says nothing."""
        server = self.servers[place]
        return server.silent or server.paused or any(at >= at_seconds for at in self.failures.get(place, ()))

    def worked_since(self, at_seconds: float, until_seconds: float) -> bool:
        """For the dispatcher to know that it is busy: two looks since then that are far enough apart for a difference,
        by one clock, and the last a moment ago."""
        since = [at for at in self.looks if max(at_seconds, self.stepped_at_seconds) < at <= until_seconds]
        apart = any(after - before > 0.25 for before, after in pairwise(since))
        return apart and until_seconds - since[-1] < 7.0
