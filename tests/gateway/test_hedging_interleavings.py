"""Two attempts and whoever ends them, in every order that time can bring: in virtual time, on a coarse grid of moments,
so that many things happen at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from dispatcher.gateway.errand import Given
from dispatcher.gateway.hedging import Hedging
from dispatcher.gateway.queue import NoSlot, Queues, Slot
from dispatcher.gateway.upstream import Failed
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.gateway_settings import GatewaySettings, TimeoutSettings
from dispatcher.vocabulary.settings import Settings
from tests.builders import LLAMA, PHI, QWEN
from tests.gateway.trials import Reader, Trial, a_given, an_errand
from tests.virtual_time import in_virtual_time

WHOLE = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"Hello"}}]}'
)
GRID_SECONDS = 0.5
FOREVER = 10_000
ENDS = ("whole", "whole", "whole", "reset", "refuses", "silent")


@dataclass
class World:
    """Places that end after so many steps of the grid, in one way; real queues, and leases that are counted."""

    clock: Any
    random: Random
    leases: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        timeouts = TimeoutSettings(first_token_min_seconds=2.0, first_token_max_seconds=4.0, total_seconds=8.0)
        self.trial = Trial(gateway=GatewaySettings(timeouts=timeouts), clock=self.clock)
        self.trial.trying._upstreams = self  # type: ignore[assignment]  # this one has no sockets
        settings = Settings(gateway=self.trial.gateway)
        self.queues = Queues(
            settings=lambda: settings, clock=self.clock, slots=lambda place: 1, idle_since=lambda place, at: True
        )
        self.open = 0
        self.begun = self.beside = 0

    def proved(self) -> None:
        for _ in range(3):
            self.trial.trying.proofs.answered(PHI)
        self.trial.trying._deadlines.whole(PHI, self.steps(8), self.clock.now_seconds())

    def steps(self, most: int) -> float:
        return GRID_SECONDS * self.random.randrange(most)

    @asynccontextmanager
    async def post(self, origin, path, body, connect_seconds, key=None):
        self.open += 1
        self.begun += 1
        try:
            end = self.random.choice(ENDS)
            await asyncio.sleep(self.steps(2))
            if end == "reset":
                await asyncio.sleep(self.steps(16))
                raise Failed("reset", "the connection ended")
            yield self._response(end)
        finally:
            self.open -= 1

    def _response(self, end: str) -> SimpleNamespace:
        async def pieces():
            await asyncio.sleep(FOREVER if end == "silent" else self.steps(16))
            yield b'{"error":{"message":"no"}}' if end == "refuses" else WHOLE

        status = 422 if end == "refuses" else 200
        return SimpleNamespace(
            status=status, headers={}, content_length=None, content=SimpleNamespace(iter_any=lambda: pieces())
        )

    async def elsewhere(self, errand, given) -> tuple[Given, Slot] | None:
        await asyncio.sleep(self.steps(3))
        if self.random.random() < 0.2:
            return None
        self.beside += 1
        place = self.random.choice((LLAMA, QWEN))
        other = self.given(place)
        try:
            until = self.clock.now_seconds() + 3
            return other, await self.queues.enter(place, "normal", until_seconds=until, expected_seconds=1.0)
        except NoSlot:
            self.leases[other.lease.id] -= 1
            return None
        except BaseException:
            self.leases[other.lease.id] -= 1
            raise

    def given(self, place: Place) -> Given:
        given = a_given("http://127.0.0.1:1", place)
        self.leases[given.lease.id] += 1
        return given

    def end_lease(self, lease_id: str) -> None:
        self.leases[lease_id] -= 1


def later(rounds: int, then: Callable[[], Any]) -> None:
    """At the same moment, so many rounds of the loop on."""
    if rounds:
        asyncio.get_running_loop().call_soon(later, rounds - 1, then)
    else:
        then()


async def one(world: World) -> None:
    """A request of which its end is what its parts say, whoever was first."""
    hedging = Hedging(trying=world.trial.trying, elsewhere=world.elsewhere, end_lease=world.end_lease)
    if world.random.random() < 0.6:
        world.proved()
    slot = world.queues.take(PHI, expected_seconds=1.0)
    if slot is None:
        return
    errand, given = an_errand(Reader()), a_given("http://127.0.0.1:1")
    errand.given, errand.decision = given, given.decision
    task = asyncio.current_task()
    assert task is not None
    limit = world.random.choice((None, GRID_SECONDS * world.random.randrange(1, 30)))
    leaves = GRID_SECONDS * world.random.randrange(1, 30) if world.random.random() < 0.3 else None
    loop = asyncio.get_running_loop()
    over = False

    def leave() -> None:
        if not over:
            task.cancel()

    if leaves is not None:
        loop.call_later(leaves, later, world.random.randrange(8), leave)
    if world.random.random() < 0.3:  # another request has proved it meanwhile
        loop.call_later(world.steps(12), world.proved)
    began = world.clock.now_seconds()
    try:
        async with asyncio.timeout(limit):
            ended = await hedging.attempt(errand, given, slot, cached=False)
            ended_at = world.clock.now_seconds() - began
            assert all(ended_at <= most + 1e-3 for most in (limit, leaves) if most is not None), "swallowed"
            assert ended is errand.ended
            assert (ended.cause is None) == (ended.body == WHOLE)
            assert ended.cause is not None or errand.answered_by == errand.given.place
            if leaves is not None and ended_at >= leaves - 1e-3:
                await asyncio.sleep(1)  # it is cancelled here, if it was not yet
    except TimeoutError:
        assert limit is not None
    except asyncio.CancelledError:
        assert leaves is not None, "cancelled by nobody"
        task.uncancel()
    finally:
        over = True
    assert 0 == task.cancelling()
    assert errand.attempts <= 3


@pytest.mark.parametrize("seed", range(150))
@in_virtual_time
async def test_nothing_is_left_of_either_whatever_the_order(clock, seed):
    world = World(clock, Random(seed))
    for _ in range(25):
        tasks = asyncio.all_tasks()
        await one(world)
        for _ in range(5):
            await asyncio.sleep(0)  # what was cancelled ends
        assert tasks == asyncio.all_tasks(), "no task is left"
        assert (0, 0) == (world.open, max(map(abs, world.leases.values()), default=0)), "no connection, no lease"
        running = {place.model: world.queues.running(place) for place in (PHI, LLAMA, QWEN)}
        assert {0} == set(running.values()), running
        begun = world.begun
        await asyncio.sleep(40)  # drained
        assert begun == world.begun, "asked for nobody"
    assert world.beside > 0, "some were asked for twice"
    await world.trial.close()
