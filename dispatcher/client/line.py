"""One HTTP exchange at a time, each until a moment of the loop's clock: the only module that knows httpx.

The transport is used without httpx's client: that one logs every address at INFO, and a prompt may stand in one; it has
no proxies from the environment, no cookies and follows no redirect. Its own timeouts are per read and would let a slow
drip go on for ever, so every wait ends at `until` instead.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import httpx

from .troubles import Broken

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 1.0
DOCUMENT_BYTES = 32 * 1024**2
T = TypeVar("T")


def now_seconds() -> float:
    return asyncio.get_running_loop().time()


async def until(moment: float, work: Awaitable[T]) -> T:
    """Raises Broken for all that can happen between two machines."""
    try:
        async with asyncio.timeout_at(moment):
            return await work
    except TimeoutError as error:
        raise Broken("late", "no answer in time") from error
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
        raise Broken("connect", f"no connection: {error}".rstrip(": ")) from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise Broken("cut", f"{type(error).__name__}: {error}".rstrip(": ")) from error


class Reply:
    """An answer whose body is still on its way. headers: names in lower case."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = dict(response.headers)
        self._pieces = response.aiter_bytes()

    async def piece(self, moment: float) -> bytes:
        """Empty at the end."""
        return await until(moment, anext(self._pieces, b""))

    async def whole(self, moment: float, limit_bytes: int = DOCUMENT_BYTES) -> bytes:
        body = bytearray()
        while piece := await self.piece(moment):
            body += piece
            if len(body) > limit_bytes:
                raise Broken("too_long", f"more than {limit_bytes} bytes")
        return bytes(body)

    async def document(self, moment: float, limit_bytes: int = DOCUMENT_BYTES) -> Any:
        """The JSON in it; None for no body. ValueError for anything else."""
        body = await self.whole(moment, limit_bytes)
        try:
            return json.loads(body) if body else None
        except RecursionError:
            raise ValueError("nests too deep") from None


class Line:
    """Pooled without a bound: a cancelled request must never take the place of a later one."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=2.0)
        self._transport = httpx.AsyncHTTPTransport(trust_env=False, limits=limits)

    @asynccontextmanager
    async def opened(
        self,
        moment: float,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        body: object = None,
    ) -> AsyncIterator[Reply]:
        """Until the head of the answer is there. Raises Broken."""
        response = await until(moment, self._asked(method, url, headers or {}, query, body))
        try:
            yield Reply(response)
        finally:
            with suppress(Broken):
                await until(now_seconds() + CLOSE_SECONDS, response.aclose())

    async def _asked(
        self, method: str, url: str, headers: Mapping[str, str], query: Mapping[str, Any] | None, body: object
    ) -> httpx.Response:
        request = httpx.Request(
            method,
            url,
            params=query,
            headers=[(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()],
            json=body,
            extensions={"timeout": {"connect": CONNECT_SECONDS}},
        )
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        with suppress(Broken):
            await until(now_seconds() + CLOSE_SECONDS, self._transport.aclose())
