"""The loops' heartbeats: what /livez answers from, and how late the event loop runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

BEAT_SECONDS = 0.1  # ten a second: a 99.9th percentile within minutes, and every longer block of the loop is seen


@dataclass(slots=True)
class _Watched:
    """A loop that leaves a mark each time around. allowed_seconds: what one round may take."""

    mark: Callable[[], object]
    allowed_seconds: Callable[[], float]
    last: object
    beat_seconds: float


class Pulse:
    """On the monotonic clock: setting the system's time kills nobody."""

    def __init__(self, monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        self._now_seconds = monotonic_seconds
        self._beat_seconds = monotonic_seconds()
        self._watched: dict[str, _Watched] = {}

    def watch(self, name: str, mark: Callable[[], object], allowed_seconds: Callable[[], float]) -> None:
        """A loop of which `mark` changes with every round."""
        self._watched[name] = _Watched(mark, allowed_seconds, mark(), self._now_seconds())

    def age_of(self, name: str) -> float:
        """Seconds since that loop's last round ended, as seen by a beat of ours."""
        return self._now_seconds() - self._watched[name].beat_seconds

    def late_seconds(self, name: str) -> float:
        """By how much that is more than it may be; never negative."""
        return max(0.0, self.age_of(name) - self._watched[name].allowed_seconds())

    def loop_age_seconds(self) -> float:
        """Since the event loop last ran this."""
        return self._now_seconds() - self._beat_seconds

    def age_seconds(self) -> float:
        """Of the heartbeat of all: since the event loop's last, or what a watched loop is late by, if that is more."""
        return max(self.loop_age_seconds(), *(self.late_seconds(name) for name in self._watched), 0.0)

    def beat(self) -> None:
        self._beat_seconds = self._now_seconds()
        for watched in self._watched.values():
            if (mark := watched.mark()) != watched.last:
                watched.last, watched.beat_seconds = mark, self._beat_seconds

    async def run(self, saw_lag: Callable[[float], None], beat: Callable[[], None]) -> None:
        """saw_lag: seconds the loop was late. beat: what else is due, quickly, at each."""
        while True:
            due = self._now_seconds() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self.beat()
            saw_lag(max(0.0, self._beat_seconds - due))
            beat()
