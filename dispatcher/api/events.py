"""GET /events: the event stream as Server-Sent Events, for people and pages that watch. Pure ASGI.

One ring of the newest events serves every reader: a reader is a position in it, so its queue costs nothing and is
bounded by the ring. Whoever falls out of it is told how much was missed (`event: dropped`) and goes on with the oldest
that is left; whoever takes nothing for too long is disconnected. An event is encoded when its first reader gets to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import getrandbits

from starlette.types import Receive, Scope, Send

from dispatcher.api.exchange import ABORT, ClientLeft, Companion, Turned, body_of
from dispatcher.vocabulary.event import Event
from dispatcher.vocabulary.settings import LimitSettings
from dispatcher.wire.decision import encode
from dispatcher.wire.events import event_document, event_name

PIECE_BYTES = 64 * 1024  # sent at once, at most one event more than that
LEAVE_SECONDS = 1.0
_HEADERS = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]  # nginx would hold it back


@dataclass(slots=True)
class _Kept:
    event: Event
    told: bytes | None = None


class Feed:
    """publish: a reader of the one `emit`; costs an append while nobody watches. limits: asked per event and reader."""

    def __init__(self, limits: Callable[[], LimitSettings]) -> None:
        self._limits = limits
        self._ring: deque[_Kept] = deque()
        self._next = 0  # the number the next event gets
        self._epoch = f"{getrandbits(32):08x}"  # of this process: ids of an earlier one mean nothing here
        self._readers: set[asyncio.Event] = set()
        self.closed = False

    def publish(self, event: Event) -> None:
        self._ring.append(_Kept(event))
        self._next += 1
        while len(self._ring) > self._limits().event_backlog:
            self._ring.popleft()
        for woken in self._readers:
            woken.set()

    def close(self) -> None:
        """Ends every reader, and takes no new ones: the daemon leaves, and watchers must not hold it."""
        self.closed = True
        for woken in self._readers:
            woken.set()

    @property
    def readers(self) -> int:
        return len(self._readers)

    @contextmanager
    def reading(self) -> Iterator[asyncio.Event]:
        """Raises Turned when there is no place for one more."""
        if self.closed:
            raise Turned("draining", "it finishes what is in flight; come back after its restart", [_retry(2)])
        most = self._limits().event_subscribers
        if len(self._readers) >= most:
            raise Turned("too_many", f"{most} readers of /events are connected, which is the most", [_retry(30)])
        woken = asyncio.Event()
        self._readers.add(woken)
        try:
            yield woken
        finally:
            self._readers.discard(woken)

    def position_after(self, last_event_id: str) -> tuple[int, bytes]:
        """Where a reader goes on that saw `last_event_id` last ("": that is new here), and what it must be told first:
        of another process's events nobody knows how many it missed."""
        if not last_event_id:
            return self._next, b""
        epoch, _, number = last_event_id.rpartition("-")
        if epoch != self._epoch or not number.isdecimal() or len(number) > 18 or int(number) >= self._next:
            return self._next, _dropped(None, "the dispatcher was restarted since")
        return int(number) + 1, b""

    def piece_from(self, position: int) -> tuple[int, bytes]:
        """The next position, and what to send; b"" when there is nothing new."""
        pieces: list[bytes] = []
        oldest = self._next - len(self._ring)
        if position < oldest:
            pieces.append(_dropped(oldest - position, "not read in time"))
            position = oldest
        size_bytes = 0
        while position < self._next and size_bytes < PIECE_BYTES:
            told = self._told(position, oldest)
            pieces.append(told)
            size_bytes += len(told)
            position += 1
        return position, b"".join(pieces)

    def _told(self, position: int, oldest: int) -> bytes:
        kept = self._ring[position - oldest]
        if kept.told is None:
            head = f"id: {self._epoch}-{position}\nevent: {event_name(kept.event)}\ndata: "
            kept.told = head.encode() + event_document(kept.event) + b"\n\n"
        return kept.told


class EventsRoute:
    """An instance, and not a function, so that starlette routes to it as to an ASGI app."""

    def __init__(self, feed: Feed, limits: Callable[[], LimitSettings]) -> None:
        self._feed = feed
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = dict(scope["headers"]).get(b"last-event-id", b"").decode("latin-1")
        await body_of(receive)  # nothing in it counts, but only after it can the client be seen leaving
        with self._feed.reading() as woken:
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            if scope["method"] != "HEAD":
                async with Companion(receive):
                    await self._stream(last, woken, scope, send)
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, last: str, woken: asyncio.Event, scope: Scope, send: Send) -> None:
        """Until the feed closes. Raises ClientLeft for a reader that takes nothing for too long."""
        position, first = self._feed.position_after(last)
        await self._send(b": hello\n\n" + first, scope, send)
        while not self._feed.closed:
            woken.clear()
            position, piece = self._feed.piece_from(position)
            if not piece:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits().event_heartbeat_seconds):
                        await woken.wait()
                    continue
                piece = b": still here\n\n"
            await self._send(piece, scope, send)

    async def _send(self, piece: bytes, scope: Scope, send: Send) -> None:
        try:
            async with asyncio.timeout(self._limits().event_stall_seconds):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            if (abort := scope.get(ABORT)) is not None:
                abort()  # a plain close would wait for the reader that does not read
            await asyncio.sleep(LEAVE_SECONDS)  # the Companion sees it leave before that
            raise ClientLeft from None


def _dropped(count: int | None, because: str) -> bytes:
    return b"event: dropped\ndata: " + encode({"count": count, "because": because}) + b"\n\n"


def _retry(seconds: int) -> tuple[bytes, bytes]:
    return b"retry-after", str(seconds).encode()
