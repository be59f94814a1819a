"""The loop's heartbeat: what /livez answers from, and how late the event loop runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BEAT_SECONDS = 0.5


class Pulse:
    def __init__(self) -> None:
        self._beat_seconds = time.monotonic()

    def age_seconds(self) -> float:
        return time.monotonic() - self._beat_seconds

    async def run(self, saw_lag: Callable[[float], None]) -> None:
        while True:
            due = time.monotonic() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self._beat_seconds = time.monotonic()
            saw_lag(max(0.0, self._beat_seconds - due))
