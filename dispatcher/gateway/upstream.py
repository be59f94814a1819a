"""Connections to model servers, and what can go wrong on them in our words. aiohttp comes in here and nowhere else.

One pool per server, so that one whose connections have gone bad is thrown away without touching the others. No header
of a client goes out, no redirect is followed, nothing is decompressed. aiohttp's own timeouts are per socket read, and
it does not wake after a malformed chunk: the deadlines are the caller's (`asyncio.timeout`), all but connecting.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, hdrs
from aiohttp.http_exceptions import HttpProcessingError

from dispatcher.vocabulary.relay import Cause

MAX_POOLS = 256  # of servers; the one unused for longest goes first
IDLE_SECONDS = 15.0  # a connection unused for longer is not used again: its server may be closing it
HEADERS: dict[str, str] = {hdrs.CONTENT_TYPE: "application/json", hdrs.ACCEPT: "*/*"}
BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)  # what a bad connection or answer raises
LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)  # before the head of an answer
STALE_SECONDS = 1.0  # a connection that was closed already says so within a round trip
_NOT_OURS = (hdrs.USER_AGENT, hdrs.ACCEPT_ENCODING)


class Failed(Exception):
    """An attempt, by a cause; the words are for a person and hold nothing a server said."""

    def __init__(self, cause: Cause, words: str) -> None:
        self.cause = cause
        self.words = words
        super().__init__(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    url: str
    body: bytes
    headers: Mapping[str, str]
    connect_seconds: float


@dataclass(slots=True)
class _Sent:
    """How a request went out."""

    at_seconds: float
    reused: bool = False  # on a connection that had answered another


async def _on_reused(_: object, context: Any, __: object) -> None:
    context.trace_request_ctx.reused = True


class _Pool:
    """The connections to one server. Retired, it closes with the last request that is on one of them."""

    def __init__(self) -> None:
        traced = aiohttp.TraceConfig()
        traced.on_connection_reuseconn.append(_on_reused)
        self.session = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=60),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            skip_auto_headers=_NOT_OURS,
            trace_configs=[traced],
        )
        self.in_use = 0
        self.retired = False

    async def send(self, wanted: _Wanted, sent: _Sent) -> ClientResponse:
        """Until the head of the answer."""
        return await self.session.post(
            wanted.url,
            data=wanted.body,
            headers=wanted.headers,
            allow_redirects=False,
            timeout=ClientTimeout(total=None, sock_connect=wanted.connect_seconds),
            trace_request_ctx=sent,
        )


class Upstreams:
    """One per daemon, on its loop."""

    def __init__(self) -> None:
        self._pools: OrderedDict[str, _Pool] = OrderedDict()
        self._retired: set[_Pool] = set()  # in use still
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def post(
        self, origin: str, path: str, body: bytes, connect_seconds: float, key: str | None = None
    ) -> AsyncIterator[ClientResponse]:
        """One request, sent; the answer's body is not read yet. Raises Failed, also out of reading inside of the block.
        Left early, for any reason, its connection is closed: that is how a model server is told to stop."""
        headers = HEADERS if key is None else {**HEADERS, hdrs.AUTHORIZATION: f"Bearer {key}"}
        wanted = _Wanted(url=origin + path, body=body, headers=headers, connect_seconds=connect_seconds)
        pool = self._entered(origin)
        try:
            sent = _Sent(asyncio.get_running_loop().time())
            try:
                response = await pool.send(wanted, sent)
            except LOST as error:
                if not _was_stale(sent, error):
                    raise
                pool = self._renewed(origin, pool)
                response = await pool.send(wanted, sent)
            async with response:
                yield response
        except BROKEN as error:
            self._retire(origin, pool)
            raise _failed(error, connect_seconds) from error
        finally:
            self._left(pool)

    async def close(self) -> None:
        pools, self._pools = [*self._pools.values(), *self._retired], OrderedDict()
        for pool in pools:
            self._close(pool)
        await asyncio.gather(*self._closing)

    def _entered(self, origin: str) -> _Pool:
        pool = self._pool(origin)
        pool.in_use += 1
        return pool

    def _left(self, pool: _Pool) -> None:
        pool.in_use -= 1
        if pool.retired and not pool.in_use:
            self._close(pool)

    def _renewed(self, origin: str, stale: _Pool) -> _Pool:
        """Without any connection in it: also of one that replaced the stale one meanwhile, some may be stale by now."""
        for pool in {stale, self._pools.get(origin, stale)}:
            self._retire(origin, pool)
        pool = self._entered(origin)
        self._left(stale)
        return pool

    def _pool(self, origin: str) -> _Pool:
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = _Pool()
            if len(self._pools) > MAX_POOLS:
                self._retire(*next(iter(self._pools.items())))
        else:
            self._pools.move_to_end(origin)
        return pool

    def _retire(self, origin: str, pool: _Pool) -> None:
        """Its connections are suspect: the next request there gets a new one. Those in use are not cut."""
        if self._pools.get(origin) is pool:
            del self._pools[origin]
        pool.retired = True
        self._retired.add(pool)
        if not pool.in_use:
            self._close(pool)

    def _close(self, pool: _Pool) -> None:
        """In a task of its own: whoever was on it last may be cancelled at this moment."""
        self._retired.discard(pool)
        task = asyncio.create_task(pool.session.close(), name="gateway.pool")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _was_stale(sent: _Sent, error: Exception) -> bool:
    """Servers close connections that are kept alive when they like, without a word; a request that crosses the closing
    is lost, which is no failure of theirs. A request the server did hear may run twice by that: it gave no byte of an
    answer to the first, and a generation changes nothing. What is lost later than at once was worked on."""
    in_time = asyncio.get_running_loop().time() - sent.at_seconds <= STALE_SECONDS
    begun = isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)
    return sent.reused and in_time and not begun


def _failed(error: BaseException, connect_seconds: float) -> Failed:
    """aiohttp's tree in ours. What came before an answer is a connection's; what came within one cut it short."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Failed("connect", f"no connection within {connect_seconds:g} s")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failed("connect", "the connection was refused")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failed("truncated", "the answer was cut short")
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError):
        return Failed("reset", "the connection ended before an answer")
    return Failed("malformed", "what came is not HTTP")


__all__ = ["BROKEN", "ClientResponse", "Failed", "Upstreams"]
