"""Heartbeats: the event loop's, which is what /livez answers from and how late it runs; and when each watched loop went
round last, for /readyz. A poll or an engine that hangs is no reason to start the process again: it never makes /livez
fail (the service manager's watchdog is what a reconciler that hangs starves)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

_log = logging.getLogger(__name__)
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

    def beat(self) -> None:
        self._beat_seconds = self._now_seconds()
        for watched in self._watched.values():
            if (mark := watched.mark()) != watched.last:
                watched.last, watched.beat_seconds = mark, self._beat_seconds

    async def run(self, saw_lag: Callable[[float], None], beat: Callable[[], None]) -> None:
        """saw_lag: seconds the loop was late. beat: what else is due, quickly, at each; what goes wrong in it is told
        once, until it goes well again, and stops no heart."""
        told = ""
        while True:
            due = self._now_seconds() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self.beat()
            try:
                saw_lag(max(0.0, self._beat_seconds - due))
                beat()
            except Exception as fault:
                if told != (told := repr(fault)):
                    _log.exception('beat=failed fault="%s" consequence="what was due at it is tried at the next"', told)
            else:
                told = ""
