"""The loop's heartbeat: what /livez answers from, and how late the event loop runs."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

BEAT_SECONDS = 0.5


class LagSeen(Protocol):
    def saw_lag(self, lag_seconds: float) -> None:
        """One measurement of dispatcher_event_loop_lag_seconds."""


class Pulse:
    def __init__(self) -> None:
        self._beat_seconds = time.monotonic()

    def age_seconds(self) -> float:
        return time.monotonic() - self._beat_seconds

    async def run(self, seen: LagSeen) -> None:
        while True:
            due = time.monotonic() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self._beat_seconds = time.monotonic()
            seen.saw_lag(max(0.0, self._beat_seconds - due))
