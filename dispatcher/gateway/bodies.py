"""The bytes of request bodies that wait, whatever for: the batch gate, a load, a lease, a turn in a queue, a retry.

One account for all of them, so that no way of waiting is unbounded. What is at an engine does not count: the slots
bound it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dispatcher.gateway.line import NoSlot
from dispatcher.vocabulary.settings import Settings


class Body:
    """Of one request: counted from its arrival until it is sent, and again when it is to be sent once more."""

    __slots__ = ("_bodies", "_size_bytes", "_waiting")

    def __init__(self, bodies: Bodies, size_bytes: int) -> None:
        self._bodies, self._size_bytes, self._waiting = bodies, size_bytes, False

    def waits(self) -> None:
        """Without asking whether there is room: it was let in, and only what was at an engine waits again."""
        if not self._waiting:
            self._waiting = True
            self._bodies.waiting_bytes += self._size_bytes

    def sent(self) -> None:
        if self._waiting:
            self._waiting = False
            self._bodies.waiting_bytes -= self._size_bytes


class Bodies:
    """One per gateway."""

    def __init__(self, *, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self.waiting_bytes = 0

    @contextmanager
    def waiting(self, size_bytes: int) -> Iterator[Body]:
        """Raises NoSlot where they are too many; one alone is let in, or it could never be answered."""
        most = self._settings().gateway.queue.size_bytes
        if self.waiting_bytes and self.waiting_bytes + size_bytes > most:
            held = f"{self.waiting_bytes} bytes of requests wait, and these {size_bytes} would be too many"
            raise NoSlot(f"{held}: gateway.queue.size is {most} bytes", wait_seconds=None)
        body = Body(self, size_bytes)
        body.waits()
        try:
            yield body
        finally:
            body.sent()
