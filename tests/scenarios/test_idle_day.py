"""A scripted day: forty requests in bursts over 24 hours against three rehearsal models, in virtual time.

What does holding models cost, and what do cold starts?
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from dispatcher.vocabulary.decision import Selected
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB
from tests.builders import LLAMA, PHI, QWEN
from tests.fake_engine import footprint
from tests.rehearsed import Rehearsed
from tests.virtual_house import House, a_house
from tests.virtual_time import in_virtual_time

DAY_SECONDS = 86_400
PLACES = (PHI, LLAMA, QWEN)
BURSTS = [  # hour of the day → what is asked for, in quick succession
    (7.5, [("summarization", "simple")] * 6),  # the digest before breakfast
    (9.0, [("coding", "complex")] * 5),
    (10.2, [("coding", "moderate")] * 5),
    (13.0, [("general", "simple")] * 4),
    (14.5, [("debugging", "complex")] * 5),
    (16.0, [("documentation", "moderate")] * 5),
    (18.7, [("summarization", "moderate")] * 6),
    (23.0, [("analysis", "complex")] * 4),
]


@in_virtual_time
async def test_a_day_of_forty_requests_holds_four_fifths_less_memory_than_keeping_all_three(clock):
    house = a_house(clock, total_bytes=16 * GIB, reconcile_interval_seconds=15.0)
    chance = random.Random(40)
    for place in PLACES:
        house.engine.servers[place].rehearsed = Rehearsed(place.model, clock, chance)
    began, used_byte_seconds, waits, answered_by = clock.now_seconds(), 0.0, [], []
    async with house.open():
        for hour, asks in BURSTS:
            await asyncio.sleep(max(0.0, began + hour * 3600 - clock.now_seconds()))
            for task, complexity in asks:
                asked_at = clock.now_seconds()
                selected, work_seconds = await answered(house, task, complexity, chance)
                assert selected.lease is not None, selected.decision.sentence
                answered_by.append(selected.lease.place.model)
                waits.append(clock.now_seconds() - asked_at - work_seconds)
                used_byte_seconds += footprint(selected.lease.place) * work_seconds
                await asyncio.sleep(chance.uniform(5, 90))
        await asyncio.sleep(began + DAY_SECONDS - clock.now_seconds())
        house.engine.count()

    everything = sum(footprint(place) for place in PLACES) * DAY_SECONDS
    idle, idle_of_all = house.engine.byte_seconds - used_byte_seconds, everything - used_byte_seconds
    saving_ratio = 1 - idle / idle_of_all
    loads = {place.model: len(house.engine.did("loaded", place)) for place in PLACES}
    print(
        f"\n40 requests in 24 h, answered by {dict(Counter(answered_by))}: {idle / GIB / 3600:.1f} GiB·h held idle, "
        f"against {idle_of_all / GIB / 3600:.1f} with all three resident ({saving_ratio:.1%} saved), for cold starts "
        f"{loads} and {sum(waits):.0f} s of waiting in all, the longest {max(waits):.1f} s"
    )

    assert 40 == len(waits)
    assert saving_ratio >= 0.80
    assert len(set(answered_by)) >= 2, "a day of one model proves little"
    assert sum(loads.values()) <= 2 * len(BURSTS), "a burst pays for one or two loads, not each request for its own"


async def answered(house: House, task: str, complexity: str, chance: random.Random) -> tuple[Selected, float]:
    """As a workflow does it: select, call the model, report. The seconds its simulated server needed for the answer."""
    prefer = "quality" if complexity == "complex" else "balanced"
    selected = await house.desk.select(Asked(text="as every day", task=task, complexity=complexity, prefer=prefer))
    if selected.lease is None:
        return selected, 0.0
    server = house.engine.servers[selected.lease.place]
    house.engine.work(server.place, 2.0)
    done = await server.rehearsed.answer(chance.randint(50, 1500), chance.randint(40, 300), selected.lease.num_ctx)
    house.engine.work(server.place, 0.0)
    house.give_back(selected.lease, "outcome")
    return selected, done.total_seconds
