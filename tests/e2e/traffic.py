"""What the traffic tests share: a daemon in front of a model server of ours, clients that ask, and what they saw."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import RunningDaemon, running
from tests.misbehaving import Conduct, Heard, Line, Misbehaving, good_pieces, media_type_of
from tests.realparts import eventually

NO_DOCKER = {"DOCKER_HOST": "unix:///tmp/none.sock"}
Body = dict[str, Any]


def config(server: Misbehaving, /, **sections: Any) -> dict[str, Any]:
    lifecycle = {"provider": "ollama", "ollama_url": server.url, "capacity": "64GiB", **sections.pop("lifecycle", {})}
    policy = {**CPU_NEVER_MATTERS, **sections.pop("policy", {})}
    return {"lifecycle": lifecycle, "policy": policy, "telemetry": {"prometheus": {"enabled": False}}, **sections}


@contextmanager
def gateway(folder: Path, server: Misbehaving, /, **sections: Any) -> Iterator[RunningDaemon]:
    """A daemon that has seen what is loaded there."""
    with running(folder, config(server, **sections), environment=NO_DOCKER) as daemon:
        wait_until_ready(daemon, *server.loaded)
        yield daemon


def wait_until_ready(daemon: RunningDaemon, *models: str) -> None:
    eventually(
        lambda: all(daemon.states().get(model) == "ready" for model in models) or None,
        deadline_seconds=30,
        what=lambda: f"{models} to be ready: {daemon.states()}",
    )


def chat(words: str = "Say hello.", *, model: str = "auto", stream: bool = False, tokens: int | None = None) -> Body:
    """For /v1/chat/completions."""
    limit = {} if tokens is None else {"max_tokens": tokens}
    return {"model": model, "messages": [{"role": "user", "content": words}], "stream": stream, **limit}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """status 0: no answer at all, and `trouble` says why. whole: it came to its end, in the surface's way."""

    status: int
    body: bytes
    headers: dict[str, str]
    seconds: float
    trouble: str = ""

    @property
    def model(self) -> str:
        return self.headers.get("x-dispatcher-model", "")

    @property
    def whole(self) -> bool:
        if self.status != 200 or self.trouble:
            return False
        return b"[DONE]" in self.body or b'"done":true' in self.body or b'"finish_reason":"stop"' in self.body


@asynccontextmanager
async def clients() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    body: Body,
    *,
    path: str = "/v1/chat/completions",
    timeout_seconds: float = 60.0,
    headers: dict[str, str] | None = None,
) -> Seen:
    began, got, status, told = time.monotonic(), b"", 0, {}
    try:
        async with asyncio.timeout(timeout_seconds):
            async with session.post(url + path, json=body, headers=headers) as answer:
                status, told = answer.status, {name.lower(): value for name, value in answer.headers.items()}
                async for piece in answer.content.iter_any():
                    got += piece
    except (TimeoutError, aiohttp.ClientError) as trouble:
        seconds = time.monotonic() - began
        return Seen(status=status, body=got, headers=told, seconds=seconds, trouble=repr(trouble))
    return Seen(status=status, body=got, headers=told, seconds=time.monotonic() - began)


def streams(count: int, pause_seconds: float = 0.0, *, first_seconds: float = 0.0) -> Conduct:
    """A good answer of so many pieces; not streamed, it takes as long."""

    async def conduct(line: Line) -> None:
        await asyncio.sleep(first_seconds)
        if not line.heard.streams:
            await asyncio.sleep(count * pause_seconds)
            await line.whole(200, good_pieces(line.heard)[0])
            return
        await line.head(200, f"Content-Type: {media_type_of(line.heard)}", "Transfer-Encoding: chunked")
        for piece in pieces_of(line.heard, count):
            await line.chunk(piece)
            await asyncio.sleep(pause_seconds)
        await line.last_chunk()

    return conduct


def pieces_of(heard: Heard, count: int) -> list[bytes]:
    """What `streams` answers: so many words, and the end."""
    *words, end, done = good_pieces(heard)
    return [words[number % len(words)] for number in range(count)] + [end, done]


def streamed_by(model: str, count: int) -> bytes:
    """What the client of a whole stream has got."""
    body = json.dumps({"model": model, "stream": True}).encode()
    heard = Heard(method="POST", path="/v1/chat/completions", headers=(), body=body, at_seconds=0.0)
    return b"".join(pieces_of(heard, count))


async def until(look: Callable[[], bool], what: str, *, within_seconds: float = 30) -> None:
    """In a thread: the loop goes on."""
    await asyncio.to_thread(eventually, lambda: look() or None, deadline_seconds=within_seconds, what=what)


def open_files(daemon: RunningDaemon) -> int:
    assert daemon.popen is not None
    return len(os.listdir(f"/proc/{daemon.popen.pid}/fd"))


def resident_bytes(daemon: RunningDaemon) -> int:
    assert daemon.popen is not None
    pages = Path(f"/proc/{daemon.popen.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def leases(daemon: RunningDaemon) -> int:
    return sum(place["leases"] for model in daemon.get("/models").json()["models"] for place in model["places"])


def lines(daemon: RunningDaemon) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = daemon.get("/queue").json()["places"]
    return told


def is_idle(daemon: RunningDaemon) -> bool:
    """Nobody runs, waits or drains anywhere, and nothing is promised."""
    taken = sum(line["running"] + line.get("draining", 0) + sum(line["waiting"].values()) for line in lines(daemon))
    return taken == 0 and leases(daemon) == 0


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def json_of(seen: Seen) -> Any:
    return json.loads(seen.body)
