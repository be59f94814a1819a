"""Comments while the model says nothing, and what becomes of streams when the daemon is told to go."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import traffic
from tests.e2e.running import RunningDaemon
from tests.misbehaving import Line, Misbehaving

HEARTBEAT = b": waiting for the model\n\n"
PIECES = 30
STREAMS = 5


@contextmanager
def slow_house(folder: Path, pause_seconds: float) -> Iterator[tuple[Misbehaving, RunningDaemon]]:
    with Misbehaving() as server:
        server.script("", {"*": traffic.streams(PIECES, pause_seconds)})
        with traffic.gateway(folder, server, lifecycle={"num_parallel": STREAMS}) as daemon:
            yield server, daemon


async def test_a_silent_stream_gets_comments_and_then_its_content(tmp_path):
    with Misbehaving() as server:
        server.script("", {"*": traffic.streams(4, 0.01, first_seconds=1.0)})
        with traffic.gateway(tmp_path, server, gateway={"timeouts": {"heartbeat": "200ms"}}) as daemon:
            async with traffic.clients() as session:
                seen = await traffic.ask(session, daemon.url, traffic.chat(stream=True))

    beats = seen.body.count(HEARTBEAT)
    content = seen.body[beats * len(HEARTBEAT) :]
    assert seen.body.startswith(HEARTBEAT * beats), seen.body
    assert beats >= 2
    assert content in [traffic.streamed_by(model, 4) for model in server.loaded]
    assert seen.headers["content-type"].startswith("text/event-stream")


async def test_after_a_comment_another_model_may_still_answer(tmp_path):
    async def dies(line: Line) -> None:
        await asyncio.sleep(0.5)
        line.reset()

    with Misbehaving() as server:
        server.script("", {"*": traffic.streams(4, 0.01), "phi3:mini": dies})
        with traffic.gateway(tmp_path, server, gateway={"timeouts": {"heartbeat": "200ms"}}) as daemon:
            async with traffic.clients() as session:
                seen = await traffic.ask(session, daemon.url, traffic.chat(model="phi3:mini", stream=True))

    beats = seen.body.count(HEARTBEAT)
    assert beats >= 1
    assert seen.body[beats * len(HEARTBEAT) :] in [
        traffic.streamed_by(model, 4) for model in server.loaded if model != "phi3:mini"
    ], seen


async def five_streams(daemon: RunningDaemon, server: Misbehaving) -> list[asyncio.Task[traffic.Seen]]:
    """All of them at the engine."""

    async def one() -> traffic.Seen:
        async with traffic.clients() as session:
            return await traffic.ask(session, daemon.url, traffic.chat(model="phi3:mini", stream=True))

    asking = [asyncio.create_task(one()) for _ in range(STREAMS)]
    await traffic.until(lambda: len(server.asked("")) == STREAMS, "all to be at the engine")
    await asyncio.sleep(0.3)  # content has begun
    return asking


def told(daemon: RunningDaemon) -> None:
    assert daemon.popen is not None
    daemon.popen.send_signal(signal.SIGTERM)


async def is_draining(daemon: RunningDaemon) -> None:
    await traffic.until(lambda: daemon.get("/readyz").status_code == 503, "it to drain")


@pytest.mark.parametrize(
    ("path", "form"), [("/v1/chat/completions", dict), ("/api/chat", str)], ids=["openai", "ollama"]
)
async def test_told_to_go_it_finishes_what_streams_and_refuses_the_new(path, form, tmp_path):
    with slow_house(tmp_path, 0.1) as (server, daemon):
        asking = await five_streams(daemon, server)
        told(daemon)
        await is_draining(daemon)
        async with traffic.clients() as session:
            refused = await traffic.ask(session, daemon.url, traffic.chat(), path=path)
        seen = await asyncio.gather(*asking)

        assert (503, "2") == (refused.status, refused.headers.get("retry-after")), refused
        assert isinstance(traffic.json_of(refused)["error"], form), refused.body
        assert [traffic.streamed_by("phi3:mini", PIECES)] * STREAMS == [one.body for one in seen]
        assert daemon.popen is not None
        assert 0 == await asyncio.to_thread(daemon.popen.wait, 20), daemon.log()
        assert "Traceback" not in daemon.log(), daemon.log()


async def test_told_twice_who_waits_for_a_load_is_told_so_and_no_other_model_is_loaded(tmp_path):
    async def hangs(line: Line) -> None:
        await line.until_the_other_leaves()

    with Misbehaving(loaded={}, loading={"llama3.2:3b": hangs}) as server, traffic.gateway(tmp_path, server) as daemon:
        async with traffic.clients() as session:
            asking = asyncio.create_task(traffic.ask(session, daemon.url, traffic.chat(model="llama3.2:3b")))
            await traffic.until(lambda: server.loads_asked("llama3.2:3b") == 1, "the load to begin")
            told(daemon)
            await is_draining(daemon)
            told(daemon)
            refused = await asking

        assert (503, "2") == (refused.status, refused.headers.get("retry-after")), refused
        assert "draining" == traffic.json_of(refused)["error"]["code"], refused.body
        assert daemon.popen is not None
        assert 0 == await asyncio.to_thread(daemon.popen.wait, 30), daemon.log()
        assert [0, 1, 0] == [server.loads_asked(model) for model in server.models], daemon.log()


async def test_told_twice_its_streams_end_so_that_everybody_sees_it(tmp_path):
    with slow_house(tmp_path, 1.0) as (server, daemon):
        asking = await five_streams(daemon, server)
        told(daemon)
        await is_draining(daemon)
        told(daemon)
        seen = await asyncio.gather(*asking)

        for one in seen:
            assert (200, False) == (one.status, b"[DONE]" in one.body), one.body
            assert b'"error"' in one.body.rpartition(b"data: ")[2], one.body
            assert one.trouble, "the connection ended as if all were well"
        assert daemon.popen is not None
        assert 0 == await asyncio.to_thread(daemon.popen.wait, 30), daemon.log()
        assert "Traceback" not in daemon.log(), daemon.log()
