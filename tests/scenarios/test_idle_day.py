"""A scripted day: forty requests in bursts over 24 hours, three models. What does holding models cost, and what not?"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB
from tests.builders import LLAMA, PHI, QWEN
from tests.fake_engine import footprint
from tests.virtual_house import a_house
from tests.virtual_time import in_virtual_time

DAY_SECONDS = 86_400
LOADS = {PHI: 4.0, LLAMA: 3.5, QWEN: 8.0}  # seconds
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
    for place, seconds in LOADS.items():
        house.engine.servers[place].load_seconds = seconds
    chance = random.Random(40)
    began, used_byte_seconds, waits, answered_by = clock.now_seconds(), 0.0, [], []
    async with house.open():
        for hour, asks in BURSTS:
            await asyncio.sleep(max(0.0, began + hour * 3600 - clock.now_seconds()))
            for task, complexity in asks:
                asked_at = clock.now_seconds()
                work_seconds = chance.uniform(4, 20)
                selected = await house.use(
                    Asked(
                        text="as every day",
                        task=task,
                        complexity=complexity,
                        prefer="quality" if complexity == "complex" else "balanced",
                    ),
                    work_seconds=work_seconds,
                )
                assert selected.lease is not None, selected.decision.sentence
                answered_by.append(selected.lease.place.model)
                waits.append(clock.now_seconds() - asked_at - work_seconds)
                used_byte_seconds += footprint(selected.lease.place) * work_seconds
                await asyncio.sleep(chance.uniform(5, 90))
        await asyncio.sleep(began + DAY_SECONDS - clock.now_seconds())
        house.engine.count()

    everything = sum(footprint(place) for place in (PHI, LLAMA, QWEN)) * DAY_SECONDS
    idle, idle_of_all = house.engine.byte_seconds - used_byte_seconds, everything - used_byte_seconds
    saving_ratio = 1 - idle / idle_of_all
    loads = {place.model: len(house.engine.did("loaded", place)) for place in (PHI, LLAMA, QWEN)}
    print(
        f"\n40 requests in 24 h, answered by {dict(Counter(answered_by))}: {idle / GIB / 3600:.1f} GiB·h held idle, "
        f"against {idle_of_all / GIB / 3600:.1f} with all three resident ({saving_ratio:.1%} saved), for cold starts "
        f"{loads} and {sum(waits):.0f} s of waiting in all, the longest {max(waits):.1f} s"
    )

    assert 40 == len(waits)
    assert saving_ratio >= 0.80
    assert len(set(answered_by)) >= 2, "a day of one model proves little"
    assert sum(loads.values()) <= 2 * len(BURSTS), "a burst pays for one or two loads, not each request for its own"
