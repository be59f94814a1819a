"""GET /events: the event stream as Server-Sent Events, for people and pages that watch. Pure ASGI.

One ring of the newest events serves every reader: a reader is a position in it, so its queue costs nothing and is
bounded by the ring. Whoever falls out of it is told how much was missed (`event: dropped`) and goes on with the oldest
that is left; whoever takes nothing for too long is disconnected. An event is encoded when its first reader gets to it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import getrandbits

from starlette.types import Receive, Scope, Send

from dispatcher.api.exchange import ABORT, KEY_NAME, PRESENCE, ROLE_NOW, ClientLeft, Companion, Turned, body_of
from dispatcher.vocabulary.event import Event
from dispatcher.vocabulary.settings import LimitSettings, Role
from dispatcher.wire.decision import encode
from dispatcher.wire.events import event_document, event_name, names_a_lease

PIECE_BYTES = 64 * 1024  # sent at once, at most one event more than that
LEAVE_SECONDS = 1.0
_HEADERS = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]  # nginx would hold it back


@dataclass(slots=True)
class _Kept:
    event: Event
    told: dict[bool, bytes] = field(default_factory=dict)  # by whether lease ids are in it


class Feed:
    """publish: a reader of the one `emit`; costs an append while nobody watches. limits: asked per event and reader."""

    def __init__(self, limits: Callable[[], LimitSettings]) -> None:
        self._limits = limits
        self._ring: deque[_Kept] = deque()
        self._next = 0  # the number the next event gets
        self._epoch = f"{getrandbits(32):08x}"  # of this process: ids of an earlier one mean nothing here
        self._readers: set[asyncio.Event] = set()
        self._by_key: Counter[str] = Counter()
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
    def reading(self, key_name: str | None = None) -> Iterator[asyncio.Event]:
        """Raises Turned when there is no place for one more. key_name: whose it is; None where no keys are."""
        if self.closed:
            raise Turned("draining", "it finishes what is in flight; come back after its restart", [_retry(2)])
        limits = self._limits()
        if len(self._readers) >= limits.event_subscribers:
            detail = f"{limits.event_subscribers} readers of /events are connected, which is the most"
            raise Turned("too_many", detail, [_retry(30)])
        most = limits.event_subscribers_per_key
        if key_name is not None and self._by_key[key_name] >= most:
            detail = f"{most} readers of /events are connected with the key {key_name}, which is the most for one"
            raise Turned("too_many", detail, [_retry(30)])
        woken = asyncio.Event()
        self._readers.add(woken)
        if key_name is not None:
            self._by_key[key_name] += 1
        try:
            yield woken
        finally:
            self._readers.discard(woken)
            if key_name is not None:
                self._by_key[key_name] -= 1
                self._by_key += Counter()  # drops those at 0

    def position_after(self, last_event_id: str) -> tuple[int, bytes]:
        """Where a reader goes on that saw `last_event_id` last ("": that is new here), and what it must be told first:
        of another process's events nobody knows how many it missed."""
        if not last_event_id:
            return self._next, b""
        epoch, _, number = last_event_id.rpartition("-")
        if epoch != self._epoch or not number.isdecimal() or len(number) > 18 or int(number) >= self._next:
            return self._next, _dropped(None, "the dispatcher was restarted since")
        return int(number) + 1, b""

    def piece_from(self, position: int, *, lease_ids: bool = False) -> tuple[int, bytes]:
        """The next position, and what to send; b"" when there is nothing new."""
        pieces: list[bytes] = []
        oldest = self._next - len(self._ring)
        if position < oldest:
            pieces.append(_dropped(oldest - position, "not read in time"))
            position = oldest
        size_bytes = 0
        while position < self._next and size_bytes < PIECE_BYTES:
            told = self._told(position, oldest, lease_ids)
            pieces.append(told)
            size_bytes += len(told)
            position += 1
        return position, b"".join(pieces)

    def _told(self, position: int, oldest: int, lease_ids: bool) -> bytes:
        kept = self._ring[position - oldest]
        lease_ids = lease_ids and names_a_lease(kept.event)  # else there is one form for all
        told = kept.told.get(lease_ids)
        if told is None:
            head = f"id: {self._epoch}-{position}\nevent: {event_name(kept.event)}\ndata: "
            told = head.encode() + event_document(kept.event, lease_ids=lease_ids) + b"\n\n"
            kept.told[lease_ids] = told
        return told


class EventsRoute:
    """An instance, and not a function, so that starlette routes to it as to an ASGI app."""

    def __init__(self, feed: Feed, limits: Callable[[], LimitSettings]) -> None:
        self._feed = feed
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = dict(scope["headers"]).get(b"last-event-id", b"").decode("latin-1")
        await body_of(receive)  # nothing in it counts, but only after it can the client be seen leaving
        with self._feed.reading(scope.get(KEY_NAME)) as woken:
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            if scope["method"] != "HEAD":
                async with Companion(receive, scope.get(PRESENCE)):
                    await self._stream(last, woken, scope, send)
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, last: str, woken: asyncio.Event, scope: Scope, send: Send) -> None:
        """Until the feed closes, or its reader may not be here any more: that is asked before each piece, so a key that
        was taken away is told nothing that happens afterwards. Raises ClientLeft for a reader that takes nothing for
        too long."""
        role_now: Callable[[], Role | None] = scope.get(ROLE_NOW, _nobody)
        position, first = self._feed.position_after(last)
        await self._send(b": hello\n\n" + first, scope, send)
        while not self._feed.closed:
            woken.clear()
            role = role_now()
            if role is None:
                return
            position, piece = self._feed.piece_from(position, lease_ids=role == "admin")
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


def _nobody() -> Role | None:
    """Without a front door nobody was let in."""
    return None


def _dropped(count: int | None, because: str) -> bytes:
    return b"event: dropped\ndata: " + encode({"count": count, "because": because}) + b"\n\n"


def _retry(seconds: int) -> tuple[bytes, bytes]:
    return b"retry-after", str(seconds).encode()
