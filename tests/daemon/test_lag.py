"""The loop's lag, from a real block to the exposition: it is there, and its buckets tell a 99.9th percentile."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

from dispatcher.daemon.pulse import BEAT_SECONDS, Pulse
from exporter.catalogue import BY_NAME


async def test_a_blocked_loop_is_seen_by_the_next_beat():
    lags: list[float] = []
    beats: list[int] = []
    beating = asyncio.create_task(Pulse().run(lags.append, lambda: beats.append(1)))
    await asyncio.sleep(0)  # it waits for its first beat
    time.sleep(4 * BEAT_SECONDS)  # the very thing that must not happen unseen
    while not lags:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    beating.cancel()

    assert lags[0] >= 2 * BEAT_SECONDS
    assert len(lags) == len(beats)


def test_neighbouring_buckets_are_close_enough_to_tell_a_percentile():
    buckets = BY_NAME["dispatcher_event_loop_lag_seconds"].buckets

    assert buckets[0] <= 0.001
    assert buckets[-1] >= 5
    assert all(above / below <= 2.5 for below, above in pairwise(buckets))
