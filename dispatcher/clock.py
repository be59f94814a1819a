"""Time as an argument. Wet rooms are given a Clock; dry rooms are given `now_seconds`.

One clock serves both wall time and deadlines: Unix seconds, anchored once at start and advanced by a clock that never
jumps (CLOCK_BOOTTIME where there is one: it counts suspend, so a lease does not outlive a lid closed overnight).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Protocol


class Clock(Protocol):
    def now_seconds(self) -> float:
        """Unix seconds, never running backwards."""


_steady_seconds = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


def wall_seconds() -> float:
    """What this machine's wall clock says at this moment, steps and all: to judge whether another machine's agrees
    with it, never to measure how long something took."""
    return time.time()


class SystemClock:
    """This machine's time. A stepped wall clock (NTP) is not followed until the next start."""

    def __init__(self) -> None:
        self._offset_seconds = time.time() - _steady_seconds()

    def now_seconds(self) -> float:
        return self._offset_seconds + _steady_seconds()


class ManualClock:
    """Time that moves when told to: tests, replay, simulation."""

    def __init__(self, now_seconds: float = 1_700_000_000.0) -> None:
        self._now_seconds = now_seconds

    def now_seconds(self) -> float:
        return self._now_seconds

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, f"time runs forward: {seconds}"
        self._now_seconds += seconds
