"""Clients that leave, at every moment there is: nothing of them stays, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.e2e import traffic
from tests.e2e.running import RunningDaemon
from tests.misbehaving import Misbehaving
from tests.realparts import eventually

AT_ONCE = 64
SLOTS = 32
NOBODY_LEFT_FILES = 24  # beyond what were open before: connections to the model server that are kept for the next


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """sent: how much of the request, 0..1. after_seconds: until it leaves. abort: RST, instead of FIN."""

    stream: bool
    sent: float
    after_seconds: float
    abort: bool
    priority: str
    until_first_byte: bool
    until_the_end: bool


def at_random(chance: random.Random) -> Leaving:
    kind = chance.choice(["connect", "half sent", "queued", "first token", "middle", "end"])
    waits = {"connect": 0.002, "half sent": 0.01, "queued": 0.02, "first token": 0.08, "middle": 0.1, "end": 0.0}
    sent = {"connect": 0.0, "half sent": chance.random()}.get(kind, 1.0)
    return Leaving(
        stream=chance.random() < 0.6,
        sent=sent,
        after_seconds=chance.random() * waits[kind],
        abort=chance.random() < 0.5,
        priority=chance.choice(["high", "normal", "batch"]),
        until_first_byte=kind == "middle",
        until_the_end=kind == "end",
    )


def request_of(leaving: Leaving, model: str) -> bytes:
    body = json.dumps(traffic.chat("Say hello.", model=model, stream=leaving.stream, tokens=8)).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"X-Dispatcher-Priority: {leaving.priority}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def leave(port: int, leaving: Leaving, model: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = request_of(leaving, model)
    with suppress(ConnectionError, TimeoutError):
        writer.write(data[: int(len(data) * leaving.sent)])
        await writer.drain()
        if leaving.until_first_byte or leaving.until_the_end:
            async with asyncio.timeout(5):
                await reader.read(1)
        if leaving.until_the_end:
            async with asyncio.timeout(5):
                await reader.readuntil(b"[DONE]" if leaving.stream else b"}")
        await asyncio.sleep(leaving.after_seconds)
    if leaving.abort:
        writer.transport.abort()
    else:
        writer.close()


def wait_until_idle(daemon: RunningDaemon) -> None:
    eventually(
        lambda: traffic.is_idle(daemon) or None,
        deadline_seconds=45,
        what=lambda: f"nobody to be left: {traffic.lines(daemon)}, {traffic.leases(daemon)} leases",
    )


@pytest.mark.parametrize("count", [1000, pytest.param(5000, marks=pytest.mark.chaos)])
async def test_clients_that_leave_at_any_moment_leave_nothing_behind(count, tmp_path):
    chance = random.Random(count)
    with Misbehaving() as server:
        server.script("", {"*": traffic.streams(8, 0.01, first_seconds=0.03)})
        parts = {"lifecycle": {"num_parallel": SLOTS}}
        with traffic.gateway(tmp_path, server, **parts) as daemon:
            async with traffic.clients() as session:
                warm = [traffic.ask(session, daemon.url, traffic.chat(tokens=8, stream=True)) for _ in range(AT_ONCE)]
                assert all(seen.whole for seen in await asyncio.gather(*warm))
            wait_until_idle(daemon)
            before = traffic.open_files(daemon)

            for done in range(0, count, AT_ONCE):
                models = [chance.choice(["auto", *server.loaded]) for _ in range(min(AT_ONCE, count - done))]
                await asyncio.gather(*(leave(daemon.port, at_random(chance), model) for model in models))

            await asyncio.to_thread(wait_until_idle, daemon)
            eventually(
                lambda: traffic.open_files(daemon) <= before + NOBODY_LEFT_FILES or None,
                deadline_seconds=30,
                what=lambda: f"{traffic.open_files(daemon)} open files to become {before}",
            )
            async with traffic.clients() as session:
                bodies = [traffic.chat(tokens=8, stream=bool(number % 2)) for number in range(100)]
                seen = await asyncio.gather(*(traffic.ask(session, daemon.url, body) for body in bodies))
            assert [200] * 100 == [one.status for one in seen], [one.body for one in seen if one.status != 200]
            assert all(one.whole for one in seen)
            assert "Traceback" not in daemon.log(), daemon.log()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_clients_that_hang_up_before_the_usual_time_are_no_news_of_the_model(stream, tmp_path):
    """Beyond a second, before which nothing ever counts, and beyond three times what is predicted here."""
    early = Leaving(
        stream=stream,
        sent=1.0,
        after_seconds=1.2,
        abort=False,
        priority="normal",
        until_first_byte=False,
        until_the_end=False,
    )
    with Misbehaving() as server:
        server.script("", {"*": traffic.streams(4, 0.01, first_seconds=1.5)})
        parts = {"lifecycle": {"num_parallel": AT_ONCE}}
        with traffic.gateway(tmp_path, server, **parts) as daemon:
            async with traffic.clients() as session:
                body = traffic.chat(model="llama3.2:3b", stream=stream, tokens=8)
                warm = [traffic.ask(session, daemon.url, body) for _ in range(30)]
                assert all(one.whole for one in await asyncio.gather(*warm))
                await asyncio.gather(*(leave(daemon.port, early, "llama3.2:3b") for _ in range(12)))
                await asyncio.to_thread(wait_until_idle, daemon)
                seen = await asyncio.gather(*(traffic.ask(session, daemon.url, body) for _ in range(20)))

            assert ["llama3.2:3b"] * 20 == [one.model for one in seen], seen
            assert all(one.whole for one in seen)
