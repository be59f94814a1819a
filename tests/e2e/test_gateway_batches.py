"""Models that do not fit side by side: batch requests go group by group, and a load goes on when its client leaves."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from tests.e2e import traffic
from tests.e2e.running import GIB, chain
from tests.e2e.test_gateway_cancels import Leaving, leave
from tests.misbehaving import Line, Misbehaving

FIRST, OTHER = "phi3:mini", "llama3.2:3b"
BATCH = {"X-Dispatcher-Priority": "batch", "X-Dispatcher-Fallback": "off"}
# Three of 3 GiB where 4 are: one at a time.
ONE_AT_A_TIME: dict[str, Any] = {
    "models": chain(3 * GIB, 3 * GIB, 3 * GIB),
    "lifecycle": {"capacity": "5GiB", "reserve": "1GiB", "dwell": "0s", "reconcile_interval": "200ms"},
}


def loads_for(server: Misbehaving, seconds: float) -> None:
    for model in server.models:

        async def conduct(line: Line) -> None:
            await asyncio.sleep(seconds)
            server.loaded[line.heard.model] = line.heard.fields.get("options", {}).get("num_ctx", 4096)
            await line.whole(200, b'{"response":"","done":true}')

        server.loading[model] = conduct


def changes(server: Misbehaving) -> int:
    """Of model, from one request to the next."""
    return sum(one.model != next_one.model for one, next_one in pairwise(server.asked("")))


async def test_batches_of_two_models_go_group_by_group(tmp_path):
    with Misbehaving(loaded={}) as server:
        server.script("", {"*": traffic.streams(1, 0.05)})
        loads_for(server, 0.2)
        with traffic.gateway(tmp_path, server, **ONE_AT_A_TIME) as daemon:
            async with traffic.clients() as session:
                bodies = [traffic.chat(f"{n}?", model=(FIRST, OTHER)[n % 2], tokens=2) for n in range(16)]
                asking = [traffic.ask(session, daemon.url, body, headers=BATCH) for body in bodies]
                seen = await asyncio.gather(*asking)

            assert [(FIRST, OTHER)[n % 2] for n in range(16)] == [one.model for one in seen], [
                (one.status, one.body) for one in seen if one.status != 200
            ]
            loads = server.loads_asked(FIRST) + server.loads_asked(OTHER)
            assert (1, True) == (changes(server), loads <= 3), [one.model for one in server.asked("")]


async def test_a_group_that_never_ends_lets_another_model_go_in_time(tmp_path):
    parts = {**ONE_AT_A_TIME, "gateway": {"queue": {"batch_group": "1s"}}}
    with Misbehaving(loaded={}) as server:
        server.script("", {"*": traffic.streams(1, 0.05)})
        loads_for(server, 0.1)
        with traffic.gateway(tmp_path, server, **parts) as daemon:
            async with traffic.clients() as session, asyncio.timeout(90):
                ended, bad = asyncio.Event(), list[traffic.Seen]()

                async def without_end() -> None:
                    while not ended.is_set():
                        seen = await traffic.ask(
                            session, daemon.url, traffic.chat(model=FIRST, tokens=2), headers=BATCH
                        )
                        bad.extend([] if seen.whole else [seen])

                group = [asyncio.create_task(without_end()) for _ in range(3)]
                await traffic.until(lambda: bool(server.asked("", FIRST)), "the group to begin")
                other = await traffic.ask(session, daemon.url, traffic.chat(model=OTHER, tokens=2), headers=BATCH)
                ended.set()
                await asyncio.gather(*group)

    assert [] == bad
    assert (True, OTHER) == (other.whole, other.model), other
    assert len(server.asked("", FIRST)) > 3


async def test_a_load_goes_on_when_its_client_leaves(tmp_path):
    early = Leaving(
        stream=True,
        sent=1.0,
        after_seconds=0.5,
        abort=False,
        priority="normal",
        until_first_byte=False,
        until_the_end=False,
    )
    with Misbehaving(loaded={}) as server:
        loads_for(server, 2.0)
        with traffic.gateway(tmp_path, server, **ONE_AT_A_TIME) as daemon:
            leaving = [asyncio.create_task(leave(daemon.port, early, OTHER)) for _ in range(3)]
            await asyncio.gather(*leaving)
            assert (1, {}) == (server.loads_asked(OTHER), server.loaded)
            await asyncio.to_thread(traffic.wait_until_ready, daemon, OTHER)
            async with traffic.clients() as session:
                seen = await traffic.ask(session, daemon.url, traffic.chat(model=OTHER, tokens=2))

            assert (OTHER, True, 1) == (seen.model, seen.whole, server.loads_asked(OTHER)), seen
            await traffic.until(lambda: traffic.is_idle(daemon), "nobody to be left")
