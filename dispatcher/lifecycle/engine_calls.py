"""The few requests lifecycle makes of a model server itself: does it answer, load, unload, what is loaded.

Only acting is here; looking is telemetry's. Deadlines are the caller's where a model decides how long it takes (load).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

import httpx

from dispatcher.errors import EngineAnswerUnreadable, EngineRefused, EngineUnreachable, OutOfMemory
from dispatcher.vocabulary.engine import LoadedModel
from dispatcher.wire import ollama

_Row = TypeVar("_Row")
_CONNECT_SECONDS = 5.0
_PROBE_SECONDS = 1.0  # a paused container accepts and stays silent (tests/fixtures/ollama, rule 22)
_POLL_FIRST_SECONDS = 0.05
_POLL_LAST_SECONDS = 0.2
_KILLED = "signal: killed"  # rule 21: all that a container limit leaves to be seen


class EngineCalls:
    """One per provider: owns the connections, keeps none of them idle."""

    def __init__(self) -> None:
        # httpx loses pool slots when requests are cancelled, and loads are: so there is no pool to lose slots of.
        self._client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def load(self, endpoint: str, model: str, num_ctx: int) -> float:
        """Waits for the server, however long; then loads. Seconds of the load alone. As Provider.load."""
        await self._until_it_answers(endpoint)
        began_seconds = time.monotonic()
        answer = await self._ask("POST", f"{endpoint}/api/generate", ollama.load_body(model, num_ctx))
        took_seconds = time.monotonic() - began_seconds
        _check(answer, f"load {model} with num_ctx {num_ctx} at {endpoint}")
        return took_seconds

    async def unload(self, endpoint: str, model: str, deadline_seconds: float) -> None:
        """Returns when /api/ps no longer lists it. A busy one goes when its last request ends: EngineRefused when that
        is not within the deadline."""
        what = f"unload {model} at {endpoint}"
        asked = False
        try:
            async with asyncio.timeout(deadline_seconds):
                if named(await self.loaded(endpoint), model) is None:
                    return
                _check(await self._ask("POST", f"{endpoint}/api/generate", ollama.unload_body(model)), what)
                asked = True
                async for _ in _pauses():
                    if named(await self.loaded(endpoint), model) is None:
                        return
        except TimeoutError as cause:
            if asked:
                raise EngineRefused(
                    f"{model} at {endpoint} is still loaded {deadline_seconds:g} s after it was asked to go; its "
                    "memory stays reserved. A request may still run there; it is asked again."
                ) from cause
            raise EngineUnreachable(f"{endpoint} gave no answer within {deadline_seconds:g} s ({what}).") from cause

    async def loaded(self, endpoint: str) -> dict[str, LoadedModel]:
        """/api/ps, by model. No deadline of its own."""
        answer = await self._ask("GET", f"{endpoint}/api/ps")
        if answer.status_code != httpx.codes.OK:
            raise _refusal(answer, f"say what is loaded at {endpoint}")
        return ollama.parse_ps(answer.content)

    async def _until_it_answers(self, endpoint: str) -> None:
        async for _ in _pauses():
            try:
                async with asyncio.timeout(_PROBE_SECONDS):
                    answer = await self._ask("GET", f"{endpoint}/api/version")
                if answer.status_code == httpx.codes.OK:
                    return
            except (EngineUnreachable, TimeoutError):
                continue

    async def _ask(self, method: str, url: str, body: bytes | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            return await self._client.request(method, url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as cause:
            raise EngineUnreachable(
                f"{url} gave no answer ({type(cause).__name__}: {cause}). Try: curl {url}"
            ) from cause


def named(listed: Mapping[str, _Row], model: str) -> _Row | None:
    """The row of `model`. A name without a tag means `:latest`, which is how servers list it."""
    tagged = model if ":" in model.rpartition("/")[2] else f"{model}:latest"
    return listed.get(model) or listed.get(tagged)


async def _pauses() -> AsyncIterator[None]:
    """Once now, then again after 50 ms growing to 200 ms, for ever."""
    pause_seconds = _POLL_FIRST_SECONDS
    while True:
        yield
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(_POLL_LAST_SECONDS, pause_seconds * 1.5)


def _check(answer: httpx.Response, what: str) -> None:
    """A preload or unload answers one JSON with done: true (rule 16), and no error."""
    if answer.status_code != httpx.codes.OK:
        raise _refusal(answer, what)
    try:
        read = answer.json()
    except ValueError as cause:
        raise EngineAnswerUnreadable(
            f"The answer to {what} is no JSON ({cause}); it is treated as no answer."
        ) from cause
    if not isinstance(read, dict) or read.get("done") is not True:
        if ollama.error_text(answer.content):
            raise _refusal(answer, what)
        raise EngineAnswerUnreadable(f"The answer to {what} does not end in done: true; it is treated as no answer.")


def _refusal(answer: httpx.Response, what: str) -> EngineRefused:
    words = ollama.error_text(answer.content) or answer.reason_phrase
    killed = ollama.is_memory_refusal(answer.status_code, answer.content) and _KILLED in words
    kind = OutOfMemory if killed else EngineRefused  # its guard, which refuses beforehand, kills nothing
    return kind(f"{words} (status {answer.status_code}; asked to {what})", status=answer.status_code)
