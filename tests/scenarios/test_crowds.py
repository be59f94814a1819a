"""Many at once: budgets hold, everybody gets a lease or a reason, and nobody is starved."""

from __future__ import annotations

import asyncio
import random

import pytest

from dispatcher.control.ledger import reserved_bytes
from dispatcher.vocabulary.decision import Selected
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB
from tests.builders import LLAMA, PHI, QWEN
from tests.virtual_house import House, a_house
from tests.virtual_time import in_virtual_time

S = PlaceState


def watch(house: House) -> asyncio.Task[None]:
    """Holds the house to its budget ten times a second; its fault is the test's when it is awaited."""

    async def look() -> None:
        while True:
            tenancy = house.controller.tenancy
            room = tenancy.ledger.room_bytes
            assert reserved_bytes(tenancy.ledger) <= room
            assert house.engine.held_bytes() <= room
            await asyncio.sleep(0.1)

    return asyncio.create_task(look())


async def stop_watching(watching: asyncio.Task[None]) -> None:
    assert not watching.done() or watching.exception() is None, watching.exception()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.parametrize("total_gib", [5, 7, 8, 10, 12])
@in_virtual_time
async def test_twenty_at_once_that_do_not_fit_together_keep_the_budget(clock, total_gib):
    """Named, automatic, long and short, on a host that holds one or two of the three: each a lease or a reason."""
    house = a_house(clock, total_bytes=total_gib * GIB)
    chance = random.Random(total_gib)
    asks = [
        Asked(
            text="do something",
            model=chance.choice(["auto", "auto", "phi3:mini", "llama3.2:3b", "qwen2.5:7b"]),
            context_tokens=chance.choice([300, 300, 6000]),
            complexity=chance.choice(["simple", "moderate", "complex"]),
            wait_seconds=chance.choice([0.0, 20.0, 120.0]),
        )
        for _ in range(20)
    ]
    async with house.open():
        watching = watch(house)
        answers = await asyncio.gather(*(house.use(asked, work_seconds=chance.uniform(1, 9)) for asked in asks))
        await stop_watching(watching)

        assert [] == [one.decision.sentence for one in answers if one.lease is None and not _reasoned(one)]
        assert any(one.lease for one in answers)
        assert house.engine.peak_bytes <= (total_gib - 1) * GIB
        for place in (PHI, LLAMA, QWEN):
            ready = house.turns(place).count("ready")
            assert len(house.engine.did("load", place)) == ready, "no load that nobody needed, and none twice"


def _reasoned(selected: Selected) -> bool:
    """No lease, but every place says why, in words with a rule."""
    decision = selected.decision
    return decision.chosen is None and bool(decision.candidates) and all(one.rejection for one in decision.candidates)


@in_virtual_time
async def test_a_named_large_model_is_not_starved_by_a_stream_of_small_requests(clock):
    """Two small requests a second, each three seconds of work: llama is never without a lease. The large one waits at
    most for the longest lease alive when it came, and a load; and the small ones are served again afterwards."""
    house = a_house(clock, places=[LLAMA, QWEN], total_bytes=8 * GIB)
    small = Asked(text="hi", complexity="simple", prefer="speed", expected_output_tokens=20, wait_seconds=60.0)
    served: list[tuple[float, Place | None]] = []

    async def one() -> None:
        selected = await house.use(small, work_seconds=3.0)
        served.append((clock.now_seconds(), selected.lease.place if selected.lease else None))

    async def stream() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(600):
                group.create_task(one())
                await asyncio.sleep(0.5)

    async with house.open():
        streaming = asyncio.create_task(stream())
        watching = watch(house)
        await asyncio.sleep(120.0)
        assert house.view(LLAMA).leases >= 4, "the stream is on"
        longest = house.view(LLAMA).leased_until_seconds
        asked_at = clock.now_seconds()
        large = await house.desk.select(Asked(text="think", model="qwen2.5:7b", wait_seconds=280.0))
        waited = clock.now_seconds() - asked_at

        assert large.lease is not None, large.decision.sentence
        assert (QWEN, S.READY) == (large.lease.place, large.state)
        assert (
            waited <= (longest - asked_at) + 1.0 + 1.0 + 0.3 + 4.0 + 5.0
        )  # the lease, its end, stop, start, load, a look
        house.give_back(large.lease, "outcome")
        await streaming
        await stop_watching(watching)
        after = [place for at, place in served if at > asked_at + waited + 60]
        assert after
        assert None not in after, "everybody is served again"


@in_virtual_time
async def test_a_stream_to_each_of_three_models_that_do_not_fit_serves_all_of_them(clock):
    """Named models in turn, on a host that holds one of them: each waits for the others' leases, none for ever."""
    house = a_house(clock, total_bytes=7 * GIB)
    async with house.open():
        watching = watch(house)
        asks = [
            Asked(text="x", model=model, wait_seconds=280.0) for model in ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
        ]
        answers = []
        for round_ in range(4):
            answers += await asyncio.gather(*(house.use(asked, work_seconds=5.0 + round_) for asked in asks))
        await stop_watching(watching)

        served = [one.lease.place for one in answers if one.lease]
        assert {PHI, LLAMA, QWEN} == set(served)
        assert all(_reasoned(one) for one in answers if not one.lease)


async def trouble(house: House, chance: random.Random) -> None:
    """Every minute or so something breaks, or all that hangs is healed."""
    while True:
        await asyncio.sleep(chance.uniform(5, 60))
        server = house.engine.servers[chance.choice([PHI, LLAMA, QWEN])]
        match chance.choice(["start", "load", "crash", "oom", "hang", "stuck", "away", "heal"]):
            case "start":
                server.fail_starts = 1
            case "load":
                server.fail_loads = 1
            case "crash":
                house.engine.down(server.place, exit_code=2)
            case "oom":
                house.engine.down(server.place, exit_code=137, oom_killed=True)
            case "hang":
                server.hang_load = True
            case "stuck":
                server.hang_stop = True
            case "away":
                house.engine.unreachable = "gone for a moment"
                await asyncio.sleep(chance.uniform(1, 20))
                house.engine.unreachable = None
            case _:
                for one in house.engine.servers.values():
                    one.hang_load = one.hang_stop = False


async def client(house: House, chance: random.Random, ends_at_seconds: float) -> None:
    """Asks, works, reports; one in five leaves in the middle of it."""
    while house.clock.now_seconds() < ends_at_seconds:
        await asyncio.sleep(chance.uniform(1, 40))
        asked = Asked(
            text="x",
            model=chance.choice(["auto", "auto", "qwen2.5:7b", "llama3.2:3b"]),
            wait_seconds=chance.choice([0.0, 30.0, 120.0]),
            lease_seconds=60.0,
        )
        using = asyncio.create_task(house.use(asked, work_seconds=chance.uniform(1, 20)))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.uniform(0, 10))
            using.cancel()
        await asyncio.gather(using, return_exceptions=True)
        if not using.cancelled():
            assert using.exception() is None, using.exception()


@pytest.mark.parametrize("seed", range(6))
@in_virtual_time
async def test_whatever_breaks_the_budget_holds_and_nothing_leaks(clock, seed):
    """Half an hour of requests while starts fail, loads hang, places crash, stops hang and the engine goes away."""
    house = a_house(clock, total_bytes=9 * GIB, load_timeout_seconds=40.0, idle_seconds=60.0)
    chance = random.Random(seed)

    ends_at = clock.now_seconds() + 1800
    async with house.open():
        watching = watch(house)
        troubling = asyncio.create_task(trouble(house, chance))
        await asyncio.gather(*(client(house, chance, ends_at) for _ in range(5)))
        troubling.cancel()
        house.engine.unreachable = None
        for server in house.engine.servers.values():
            server.hang_load = server.hang_stop = False
        await asyncio.sleep(900.0)
        await stop_watching(watching)

        assert 0 == house.live_leases()
        assert {S.STOPPED} >= {house.state(place) for place in (PHI, LLAMA, QWEN)} - {S.QUARANTINED}
        assert (0, 0) == (house.engine.held_bytes(), reserved_bytes(house.controller.tenancy.ledger))


@in_virtual_time
async def test_eight_hundred_that_wait_for_one_leased_model_are_all_served_when_its_lease_ends(clock):
    house = a_house(clock, total_bytes=8 * GIB)
    asked = Asked(text="think", model="qwen2.5:7b", wait_seconds=120.0)
    async with house.open():
        small = await house.desk.select(Asked(text="hi", model="llama3.2:3b", lease_seconds=600.0))
        tasks = [asyncio.create_task(house.desk.select(asked)) for _ in range(800)]
        await asyncio.sleep(60.0)
        assert 1 == len(house.controller.view().claims)
        house.give_back(small.lease)
        answers = await asyncio.gather(*tasks)

        assert {(QWEN, S.READY)} == {(one.lease and one.lease.place, one.state) for one in answers}
        assert (1, 800) == (len(house.engine.did("load", QWEN)), house.live_leases())
        assert () == house.controller.view().claims
