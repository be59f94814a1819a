"""What is relayed, in ASGI's terms: the body whole, the client watched, the answer as it comes. The gateway decides.

A client that leaves cancels its request at once; whoever writes to it afterwards is stopped, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import Message, Receive, Scope, Send

from dispatcher.api.doors import Relay
from dispatcher.api.exchange import (
    ABORT,
    CLOSE,
    KEY_NAME,
    PRESENCE,
    REQUEST_ID,
    ClientLeft,
    Companion,
    Turned,
    body_of,
)
from dispatcher.clock import Clock
from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.relay import Arrived, Endpoint, Headers

CUT_SECONDS = 2.0  # for what was written to go out, before the connection is broken off


class RelayRoute:
    """One endpoint. An instance, so that starlette routes to it as to an ASGI app."""

    def __init__(self, endpoint: Endpoint, relay: Relay, draining: Callable[[], bool], clock: Clock) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._relay = relay
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._draining():
            raise Turned("draining", "it finishes what is in flight and takes nothing new", [(b"retry-after", b"2")])
        at_seconds = self._clock.now_seconds()  # a deadline counts from here: a body may be long in coming
        body, unreadable = b"", None
        try:
            body = await body_of(receive)
        except AskInvalid as problem:
            unreadable = str(problem)
        arrived = Arrived(
            endpoint=self._endpoint,
            headers=[pair for pair in scope["headers"] if pair[0].startswith(b"x-dispatcher-")],
            body=body,
            request_id=scope[REQUEST_ID],
            key_name=scope.get(KEY_NAME),
            at_seconds=at_seconds,
            unreadable=unreadable,
        )
        async with Companion(receive, scope.get(PRESENCE)) as companion:
            await self._relay(arrived, OverAsgi(scope, send, companion))
        if companion.left:
            raise ClientLeft


class OverAsgi:
    """The client of one request, for the gateway to answer."""

    def __init__(self, scope: Scope, send: Send, companion: Companion) -> None:
        self._scope = scope
        self._send: Callable[[Message], Awaitable[None]] = send
        self._companion = companion

    @property
    def left(self) -> bool:
        return self._companion.left

    async def start(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body})

    async def cut(self, *, at_once: bool = False) -> None:
        """Closing writes what is left, and no end of the answer after it; who does not take that is cut off."""
        close, abort = self._scope.get(CLOSE), self._scope.get(ABORT)
        if close is None or abort is None:
            return
        close()
        try:
            async with asyncio.timeout(0.0 if at_once else CUT_SECONDS):
                await self._companion.gone()
        except TimeoutError:
            abort()
