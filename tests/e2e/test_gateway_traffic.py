"""Many at once: every byte of every stream, memory that stays, shares that are kept, and a queue that says no."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from tests import attendance
from tests.e2e import traffic
from tests.misbehaving import Misbehaving

MIB = 1024**2
PIECES = 12
AT_ONCE = 50


@pytest.mark.alone
@pytest.mark.parametrize("for_seconds", [10, pytest.param(60, marks=pytest.mark.chaos)])
async def test_fifty_streams_at_once_are_exact_and_memory_stays(for_seconds, tmp_path, request):
    with Misbehaving() as server:
        server.script("", {"*": traffic.streams(PIECES, 0.01)})
        parts = {"lifecycle": {"num_parallel": AT_ONCE}}
        with traffic.gateway(tmp_path, server, **parts) as daemon:
            right = {model: traffic.streamed_by(model, PIECES) for model in server.loaded}
            wrong: list[traffic.Seen] = []
            count = Counter[str]()

            async def one_client(until: float) -> None:
                async with traffic.clients() as session:
                    while time.monotonic() < until:
                        seen = await traffic.ask(session, daemon.url, traffic.chat(stream=True, tokens=PIECES))
                        count[seen.model] += 1
                        if seen.status != 200 or seen.body != right[seen.model]:
                            wrong.append(seen)

            async def all_of_them(seconds: float) -> None:
                until = time.monotonic() + seconds
                await asyncio.gather(*(one_client(until) for _ in range(AT_ONCE)))

            await all_of_them(10)
            count.clear()
            before = traffic.resident_bytes(daemon)
            await all_of_them(for_seconds)
            grown = traffic.resident_bytes(daemon) - before

    requests = sum(count.values())
    per_1000 = grown / requests * 1000
    figures = f"{requests} streams, {AT_ONCE} at once for {for_seconds} s: {per_1000 / MIB:.2f} MiB more per 1,000"
    attendance.tell(request.config, [figures])
    assert [] == wrong[:3]
    assert per_1000 <= MIB, figures


ONE_MODEL = ("phi3:mini",)


def one_place() -> Misbehaving:
    """With one slot."""
    return Misbehaving(models=ONE_MODEL, loaded={"phi3:mini": 4096})


@pytest.mark.alone
async def test_saturated_each_class_gets_its_share(tmp_path):
    warm_up, wanted = 50, 400
    ends: list[str] = []
    bad: list[traffic.Seen] = []
    with one_place() as server:
        server.script("", {"*": traffic.streams(1, 0.01)})
        with traffic.gateway(tmp_path, server) as daemon:
            before = traffic.resident_bytes(daemon)

            async def one_client(priority: str) -> None:
                headers = {"X-Dispatcher-Priority": priority}
                async with traffic.clients() as session:
                    while len(ends) < warm_up + wanted:
                        seen = await traffic.ask(session, daemon.url, traffic.chat(tokens=2), headers=headers)
                        ends.append(priority)
                        if not seen.whole:
                            bad.append(seen)

            await asyncio.gather(*(one_client(name) for name in ("high", "normal", "batch") for _ in range(12)))
            grown = traffic.resident_bytes(daemon) - before

    shares = {name: count / wanted for name, count in Counter(ends[warm_up : warm_up + wanted]).items()}
    assert [] == bad[:3]
    for name, share in {"high": 0.6, "normal": 0.3, "batch": 0.1}.items():
        assert abs(shares[name] - share) <= 0.2 * share, shares
    assert grown < 32 * MIB


async def test_saturated_nobody_waits_past_his_deadline(tmp_path):
    with one_place() as server:
        server.script("", {"*": traffic.streams(1, 0.5)})
        with traffic.gateway(tmp_path, server) as daemon:
            async with traffic.clients() as session:
                headers = {"X-Dispatcher-Deadline": "2"}
                asked = [traffic.chat(tokens=2, stream=bool(number % 2)) for number in range(30)]
                seen = await asyncio.gather(
                    *(traffic.ask(session, daemon.url, body, headers=headers) for body in asked)
                )

    late = [one for one in seen if not one.whole]
    assert all(one.status in (503, 504) or (one.status == 200 and one.trouble) for one in late), late
    assert len(seen) - len(late) in range(1, 6)  # of half a second each, one after the other
    assert len(server.asked("")) <= len(seen) - len(late) + 1, "nobody's turn came after his deadline"


async def test_a_full_queue_says_when_to_come_back_and_shows_itself(tmp_path):
    with one_place() as server:
        server.script("", {"*": traffic.streams(1, 1.0)})
        parts = {"gateway": {"queue": {"normal_entries": 5}}}
        with traffic.gateway(tmp_path, server, **parts) as daemon:
            async with traffic.clients() as session:
                asking = [
                    asyncio.create_task(traffic.ask(session, daemon.url, traffic.chat(f"{number}?", tokens=2)))
                    for number in range(12)
                ]
                await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                shown = await asyncio.to_thread(traffic.lines, daemon)
                seen = await asyncio.gather(*asking)

    refused = [one for one in seen if one.status == 503]
    assert (6, 6) == (sum(one.whole for one in seen), len(refused)), [(one.status, one.body) for one in seen]
    assert all(1 <= int(one.headers["retry-after"]) <= 120 for one in refused)
    assert {"queue_full"} == {traffic.json_of(one)["error"]["code"] for one in refused}, refused[0].body
    line = shown[0]
    assert (1, 5, 5) == (line["running"], line["waiting"]["normal"], line["limits"]["normal"]), shown
