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
    """fails, passes: in a row, of the looks that count. because: why it does not answer; "" while it does.
    down_since_seconds: when it was told down; None while it is not."""

    down: bool = False
    down_since_seconds: float | None = None
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
        if not down:
            return Liveness(passes=passes, looked_at_seconds=now_seconds)
        return replace(before, fails=0, passes=passes, looked_at_seconds=now_seconds)
    fails = before.fails + 1
    after = replace(before, fails=fails, passes=0, looked_at_seconds=now_seconds, because=because)
    if before.down or fails < FAILS_DOWN:
        return after
    return replace(after, down=True, down_since_seconds=now_seconds)


def while_paused(before: Liveness, now_seconds: float) -> Liveness:
    """It cannot answer, and is not to blame: a silence of before is counted anew from the pause's end on."""
    return replace(before, down_since_seconds=now_seconds) if before.down else before
