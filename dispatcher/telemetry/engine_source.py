"""What one engine (Ollama, or one that speaks like it) says of itself, looked at without touching it: no generation.

The weights on its disk and the shapes of its models change rarely, so /api/show is asked once per (model, digest).
Bodies are bounded and every look has one absolute deadline; httpx' own timeouts are per read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

from dispatcher.clock import Clock, SystemClock
from dispatcher.errors import EngineAnswerUnreadable
from dispatcher.vocabulary.engine import EngineSeen, InstalledModel, ModelShape
from dispatcher.wire.ollama import error_text, parse_ps, parse_show, parse_tags, parse_version

MAX_BODY_BYTES = 4 * 1024 * 1024  # /api/show, with licence, template and no tensors, has about 100 KiB
MAX_SHAPES = 512
MAX_CANCELLED = 16  # of 64 slots
SILENCE_RATIO = 0.9  # of what is left of the deadline


class _Unreadable(Exception):
    """Why one path gave nothing, in words."""


class _Pool:
    """One httpx client and who is on it. httpx 0.28 loses a pool slot for some cancelled requests (real-parts.md): a
    client that saw a few is replaced, and closed by the last who leaves it."""

    def __init__(self) -> None:
        self.users = 0
        self.cancelled = 0
        self.client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=60.0),
        )


class EngineSource:
    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._pool = _Pool()
        self._shapes: dict[tuple[str, str, str], ModelShape] = {}  # (endpoint, model, digest)

    async def look(self, endpoint: str, *, deadline_seconds: float = 2.0, details: bool = True) -> EngineSeen:
        """One look. Never raises, except when cancelled: an engine that gives no usable /api/ps is not reachable,
        and `because` says why. version, installed and shapes stay None or empty when their own answer does not come."""
        pool = self._pool
        pool.users += 1
        try:
            return await self._seen(_Look(pool.client, endpoint, deadline_seconds), details)
        except asyncio.CancelledError:
            self._lost_slot(pool)
            raise
        finally:
            pool.users -= 1
            if pool is not self._pool and pool.users == 0:
                await pool.client.aclose()

    async def close(self) -> None:
        await self._pool.client.aclose()

    async def _seen(self, look: _Look, details: bool) -> EngineSeen:
        at_seconds = self._clock.now_seconds()
        try:
            async with asyncio.timeout_at(look.until):
                loaded = parse_ps(await look.get("/api/ps"))
        except TimeoutError:
            self._lost_slot(self._pool)
            return _silent(at_seconds, f"/api/ps gave no answer within {look.deadline_seconds:g} s")
        except (_Unreadable, EngineAnswerUnreadable) as cause:
            return _silent(at_seconds, str(cause))
        version: str | None = None
        installed: Mapping[str, InstalledModel] | None = None
        shapes: dict[str, ModelShape] = {}
        if details:
            try:
                async with asyncio.timeout_at(look.until):
                    version = await self._version(look)
                    installed = parse_tags(await look.get("/api/tags"))
                    await self._add_shapes(look, installed, shapes)
            except TimeoutError:
                self._lost_slot(self._pool)
            except (_Unreadable, EngineAnswerUnreadable):
                pass  # what came until then is what is known
        return EngineSeen(
            at_seconds=at_seconds, reachable=True, version=version, loaded=loaded, installed=installed, shapes=shapes
        )

    def _lost_slot(self, pool: _Pool) -> None:
        pool.cancelled += 1
        if pool is self._pool and pool.cancelled >= MAX_CANCELLED:
            self._pool = _Pool()

    async def _version(self, look: _Look) -> str | None:
        try:
            return parse_version(await look.get("/api/version"))
        except (_Unreadable, EngineAnswerUnreadable):
            return None

    async def _add_shapes(
        self, look: _Look, installed: Mapping[str, InstalledModel], shapes: dict[str, ModelShape]
    ) -> None:
        """Into `shapes`, one by one, so that a deadline keeps those that came. One unreadable model hides no other."""
        for model, on_disk in installed.items():
            key = (look.endpoint, model, on_disk.digest)
            if key not in self._shapes:
                try:
                    shape = parse_show(model, await look.get("/api/show", {"model": model}))
                except (_Unreadable, EngineAnswerUnreadable):
                    continue
                if len(self._shapes) >= MAX_SHAPES:
                    self._shapes.clear()
                self._shapes[key] = shape
            shapes[model] = self._shapes[key]


class _Look:
    """The requests of one look, under its deadline. httpx' timeouts, per read, are a little shorter than what is left:
    a silent server then ends in a timeout of httpx, which loses no slot; only a dripping one has to be cancelled."""

    def __init__(self, client: httpx.AsyncClient, endpoint: str, deadline_seconds: float) -> None:
        self.endpoint = endpoint
        self.deadline_seconds = deadline_seconds
        self.until = asyncio.get_running_loop().time() + deadline_seconds
        self._client = client

    async def get(self, path: str, asked: Mapping[str, str] | None = None) -> bytes:
        """The body of a 200; POST when there is something to ask. Raises _Unreadable."""
        left_seconds = self.until - asyncio.get_running_loop().time()
        timeout_seconds = max(0.01, SILENCE_RATIO * left_seconds)
        method = "GET" if asked is None else "POST"
        body = bytearray()
        try:
            async with self._client.stream(
                method, self.endpoint.rstrip("/") + path, json=asked, timeout=timeout_seconds
            ) as answer:
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > MAX_BODY_BYTES:
                        raise _Unreadable(f"{path} answered more than {MAX_BODY_BYTES} bytes")
        except httpx.ConnectError as cause:
            raise _Unreadable(f"{self.endpoint} does not accept connections ({_words(cause)})") from cause
        except httpx.TimeoutException as cause:
            raise _Unreadable(f"{path} gave no answer within {self.deadline_seconds:g} s") from cause
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ValueError, OSError) as cause:
            raise _Unreadable(f"{path} broke off ({_words(cause)})") from cause
        if answer.status_code != 200:
            words = error_text(bytes(body)) or "no words"
            raise _Unreadable(f"{path} answered HTTP {answer.status_code}: {words[:200]}")
        return bytes(body)


def _silent(at_seconds: float, because: str) -> EngineSeen:
    return EngineSeen(at_seconds=at_seconds, reachable=False, because=because)


def _words(cause: BaseException) -> str:
    return str(cause) or type(cause).__name__
