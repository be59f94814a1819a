"""The real daemon before a misbehaving Ollama that holds the whole chain, and clients that look closely at what they
get: what httpx and h11 say of the framing, what the surface says of an error, and which model's words came."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dispatcher.vocabulary.relay import ENDPOINTS
from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import GIB, MIB, RunningDaemon, chain, running
from tests.misbehaving import CHAIN, Misbehaving, words_of
from tests.realparts import eventually

PATIENCE_SECONDS = 30.0  # a deadline, of which nothing is asserted: beyond it a request hangs
PHI, LLAMA, QWEN = CHAIN
_numbers = itertools.count(1)

# Small, so that what is silent is soon known to be; breakers are out of the way unless a test is about them.
QUICK: Mapping[str, Any] = {
    "timeouts": {
        "first_token_min": "400ms",
        "first_token_max": "600ms",
        "between_min": "300ms",
        "between_max": "500ms",
        "total": "800ms",
    },
    "breaker": {"failures_in_row": 1000, "window_min_requests": 100_000},
    "retries": {"backoff": "20ms"},
}


def new_case(what: str = "") -> str:
    """A name that no other request has: the server knows by it what to do."""
    return f"case-{what}-{next(_numbers)}".replace("--", "-").lower()


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to ask."""

    path: str
    stream: bool

    def __str__(self) -> str:
        return f"{self.path} {'stream' if self.stream else 'json'}"

    @property
    def native(self) -> bool:
        return ENDPOINTS[self.path].surface == "ollama"

    def body(self, model: str, words: str) -> dict[str, Any]:
        if ENDPOINTS[self.path].kind == "embed":
            return {"model": model, "prompt" if self.path == "/api/embeddings" else "input": words}
        chats = "chat" in self.path
        asked = {"messages": [{"role": "user", "content": words}]} if chats else {"prompt": words}
        at_most = {"options": {"num_predict": 4}} if self.native else {"max_tokens": 4}
        return {"model": model, "stream": self.stream, **asked, **at_most}


V1_JSON, V1_STREAM = (Way(path="/v1/chat/completions", stream=stream) for stream in (False, True))
API_JSON, API_STREAM = (Way(path="/api/chat", stream=stream) for stream in (False, True))
JSON_WAYS, STREAM_WAYS = (V1_JSON, API_JSON), (V1_STREAM, API_STREAM)
WAYS = (*JSON_WAYS, *STREAM_WAYS)


@dataclass(frozen=True, kw_only=True)
class Got:
    """status None: no answer at all. broken: what httpx says of its framing; "" when it ended as HTTP wants it to."""

    way: Way
    status: int | None
    headers: httpx.Headers
    body: bytes
    broken: str

    def __str__(self) -> str:
        return (
            f"{self.way}: {self.status} by {self.model} after {self.attempts}, {self.broken or 'whole'}: {self.body!r}"
        )

    @property
    def model(self) -> str:
        return self.headers.get("x-dispatcher-model", "")

    @property
    def attempts(self) -> int:
        return int(self.headers.get("x-dispatcher-attempts", "-1"))

    @property
    def lines(self) -> list[Any]:
        """Every line or event that can be read; comments and what cannot be are left out."""
        read = []
        for line in self.body.split(b"\n"):
            data = line.removeprefix(b"data:").strip()
            try:
                read.append(json.loads(data))
            except ValueError:
                read += ["[DONE]"] if data == b"[DONE]" else []
        return [line for line in read if isinstance(line, dict) or line == "[DONE]"]

    @property
    def words(self) -> str:
        """What a model said."""
        texts = []
        for line in self.lines:
            if isinstance(line, dict):
                choice = (line.get("choices") or [{}])[0]
                said = line.get("message") or choice.get("message") or choice.get("delta") or {}
                texts.append(said.get("content") or choice.get("text") or line.get("response") or "")
        return "".join(texts)

    @property
    def error(self) -> str:
        """In the surface's own form, as the last thing that was said; "" when there is none."""
        last = self.lines[-1] if self.lines else None
        told = last.get("error") if isinstance(last, dict) else None
        if self.way.native:
            return told if isinstance(told, str) else ""
        return str(told["message"]) if isinstance(told, dict) and {"message", "type", "code"} <= told.keys() else ""

    @property
    def says_it_ended(self) -> bool:
        """The end marker of the surface is there."""
        done = any(line == "[DONE]" or (isinstance(line, dict) and line.get("done") is True) for line in self.lines)
        return done or (not self.way.stream and self.status == 200 and not self.broken)

    # --- what is asserted of it ----------------------------------------------------------------------------------

    def assert_answered_by(self, model: str, *, attempts: int | None = None) -> None:
        assert 200 == self.status, self
        assert model == self.model, self
        assert "".join(words_of(model)) == self.words, self
        assert self.says_it_ended and not self.broken and not self.error, self
        assert attempts in (None, self.attempts), self

    def assert_failed_visibly(self) -> None:
        """Before anything came: a status and an error. Afterwards: an error event, no end marker, a broken framing."""
        assert self.error, self
        if self.status == 200:
            assert self.way.stream, self
            assert "incomplete chunked read" in self.broken, self
            assert not self.says_it_ended, self
        else:
            assert self.status is not None, self
            assert 400 <= self.status < 600, self
            assert not self.broken, self


@dataclass(kw_only=True)
class House:
    server: Misbehaving
    daemon: RunningDaemon
    cases: list[str] = field(default_factory=list)

    async def ask(
        self,
        way: Way,
        case: str,
        *,
        model: str = PHI,
        client: httpx.AsyncClient | None = None,
        headers: Mapping[str, str] | None = None,
        words: str = "",
    ) -> Got:
        """Never raises for what the daemon does, except when it does nothing for so long that it hangs."""
        if client is None:
            async with httpx.AsyncClient(trust_env=False, verify=False, timeout=None) as own:
                return await self.ask(way, case, model=model, client=own, headers=headers, words=words)
        body, broken, status, told = bytearray(), "", None, httpx.Headers()
        asked = way.body(model, f"{case} {words}")
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                async with client.stream("POST", self.daemon.url + way.path, json=asked, headers=headers) as answer:
                    status, told = answer.status_code, answer.headers
                    async for piece in answer.aiter_bytes():
                        body += piece
            except httpx.RemoteProtocolError as problem:
                broken = str(problem)
        return Got(way=way, status=status, headers=told, body=bytes(body), broken=broken)

    def asked(self, case: str, model: str | None = None) -> int:
        """How many generating requests of the case came to the server."""
        return len(self.server.asked(case, model))


@contextmanager
def house(
    folder: Path, gateway: Mapping[str, Any] | None = QUICK, *, num_parallel: int = 64, **server: Any
) -> Iterator[House]:
    """num_parallel: many, so that tests do not wait for each other. gateway None: its defaults."""
    with Misbehaving(**server) as misbehaving:
        config: dict[str, Any] = {
            "telemetry": {"prometheus": {"enabled": False}},
            "policy": CPU_NEVER_MATTERS,
            "models": chain(100 * MIB, 110 * MIB, 120 * MIB),
            "lifecycle": {
                "provider": "ollama",
                "ollama_url": misbehaving.url,
                "num_parallel": num_parallel,
                "capacity": f"{64 * GIB}",
                "reserve": "100MiB",
                "idle": "1h",
                "reconcile_interval": "1s",
            },
        }
        if gateway is not None:
            config["gateway"] = dict(gateway)
        with running(folder, config, environment={"DOCKER_HOST": "unix:///tmp/none.sock"}) as daemon:
            there = House(server=misbehaving, daemon=daemon)
            eventually(
                lambda: _all_seen(there) or None, deadline_seconds=30, what=lambda: f"{daemon.states()}\n{daemon.log()}"
            )
            yield there


def _all_seen(there: House) -> bool:
    states, loaded = there.daemon.states(), there.server.loaded
    return all(states.get(model) == ("ready" if model in loaded else "stopped") for model in CHAIN)
