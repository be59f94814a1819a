"""asyncio.timeout for a deadline that moves with every piece of a stream.

Setting a timer costs as much as watching a piece does, so it is set again only when it rings and the deadline has moved
on since, or when the deadline comes closer than it. It is never late.
"""

from __future__ import annotations

import asyncio

EARLY_SECONDS = 0.001  # a loop's timer may ring so much before its time


class Patience:
    """`async with Patience(at_seconds) as patience`, in seconds of the loop's clock. Raises TimeoutError on the way out
    when the deadline passed inside."""

    def __init__(self, at_seconds: float) -> None:
        self._at_seconds = at_seconds
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._set()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)  # type: ignore[arg-type]

    def reschedule(self, at_seconds: float) -> None:
        self._at_seconds = at_seconds
        if at_seconds < self._rings_at_seconds:
            self._timer.cancel()
            self._set()

    def expired(self) -> bool:
        return self._timeout.expired()

    def _set(self) -> None:
        self._timer = self._loop.call_at(self._at_seconds, self._ring)
        self._rings_at_seconds = self._at_seconds

    def _ring(self) -> None:
        if self._at_seconds - self._loop.time() > EARLY_SECONDS:
            self._set()
        elif not self._timeout.expired():
            self._timeout.reschedule(self._loop.time())
