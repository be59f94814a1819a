"""Whether a place answers, told from its last looks: one missed look is no outage, one lucky answer no recovery. Dry.

Of a place that runs. One whose container has ended is down by what its engine says, at once, and no matter of this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FAILS_DOWN = 3
PASSES_UP = 2
APART_SECONDS = 1.0  # looks closer than this (the engine's events wake the loop) are one look


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """fails, passes: in a row, of the looks that count. because: why it does not answer; "" while it does."""

    down: bool = False
    fails: int = 0
    passes: int = 0
    looked_at_seconds: float = float("-inf")
    because: str = ""


def heard(before: Liveness, answers: bool, now_seconds: float, because: str = "") -> Liveness:
    """After one more look. A change of mind counts at once; the same answer again only when it is a look of its own."""
    again = before.passes if answers else before.fails
    if again and now_seconds - before.looked_at_seconds < APART_SECONDS:
        return before
    if answers:
        passes = before.passes + 1
        down = before.down and passes < PASSES_UP
        return Liveness(down=down, passes=passes, looked_at_seconds=now_seconds, because=before.because if down else "")
    fails = before.fails + 1
    after = replace(before, fails=fails, passes=0, looked_at_seconds=now_seconds, because=because)
    return replace(after, down=before.down or fails >= FAILS_DOWN)
