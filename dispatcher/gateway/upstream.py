"""Connections to model servers, and what can go wrong on them in our words. aiohttp comes in here and nowhere else.

One pool per server, so that one whose connections have gone bad is thrown away without touching the others. No header
of a client goes out, no redirect is followed, nothing is decompressed. aiohttp's own timeouts are per socket read, and
it does not wake after a malformed chunk: the deadlines are the caller's (`asyncio.timeout`), all but connecting.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, hdrs
from aiohttp.http_exceptions import HttpProcessingError

from dispatcher.vocabulary.relay import Cause

MAX_POOLS = 256  # of servers; the one unused for longest goes first
IDLE_SECONDS = 15.0  # a connection unused for longer is not used again: its server may be closing it
HEADERS = {hdrs.CONTENT_TYPE: "application/json", hdrs.ACCEPT: "*/*"}
BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)  # what a bad connection or answer raises
_NOT_OURS = (hdrs.USER_AGENT, hdrs.ACCEPT_ENCODING)


class Failed(Exception):
    """An attempt, by a cause; the words are for a person and hold nothing a server said."""

    def __init__(self, cause: Cause, words: str) -> None:
        self.cause = cause
        self.words = words
        super().__init__(words)


class _Pool:
    """The connections to one server. Retired, it closes with the last request that is on one of them."""

    def __init__(self) -> None:
        self.session = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=60),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            skip_auto_headers=_NOT_OURS,
        )
        self.in_use = 0
        self.retired = False


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
        pool = self._pool(origin)
        pool.in_use += 1
        try:
            async with pool.session.post(
                origin + path,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=ClientTimeout(total=None, sock_connect=connect_seconds),
            ) as response:
                yield response
        except BROKEN as error:
            self._retire(origin, pool)
            raise _failed(error, connect_seconds) from error
        finally:
            pool.in_use -= 1
            if pool.retired and not pool.in_use:
                self._close(pool)

    async def close(self) -> None:
        pools, self._pools = [*self._pools.values(), *self._retired], OrderedDict()
        for pool in pools:
            self._close(pool)
        await asyncio.gather(*self._closing)

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
