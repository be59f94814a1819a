"""Whose turn it is at a place: three classes with guaranteed shares, lent out while nobody of a class waits.

Stride scheduling: each class has a pass that grows by 1 / share for every request it got; the lowest pass among those
that wait goes next. Dry: who waits, and for how long, is the queue's business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from dispatcher.vocabulary.request import Priority

FIRST_TO_LAST: tuple[Priority, ...] = ("high", "normal", "batch")  # of equal passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """passes: per class, how far it has come. now: the pass of the class served last, where a class that begins to wait
    joins in: what it did not use while nobody of it waited is not owed to it."""

    passes: Mapping[Priority, float] = field(default_factory=dict)
    now: float = 0.0


def joined(turns: Turns, priority: Priority) -> Turns:
    """The first of its class begins to wait."""
    at = max(turns.passes.get(priority, 0.0), turns.now)
    return Turns(passes={**turns.passes, priority: at}, now=turns.now)


def next_class(
    turns: Turns, waiting: Collection[Priority], shares: Mapping[Priority, float]
) -> tuple[Priority, Turns] | None:
    """Whose turn it is among the classes with somebody waiting, and the turns after it. None: nobody waits."""
    candidates = [priority for priority in FIRST_TO_LAST if priority in waiting]
    if not candidates:
        return None
    chosen = min(candidates, key=lambda priority: turns.passes.get(priority, 0.0))
    at = turns.passes.get(chosen, 0.0)
    return chosen, Turns(passes={**turns.passes, chosen: at + 1.0 / shares[chosen]}, now=max(turns.now, at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """One batch request that waits for its group's turn."""

    model: str
    since_seconds: float


def next_in_group(
    waiting: Sequence[Grouped], current_model: str | None, now_seconds: float, starvation_seconds: float
) -> int | None:
    """Index of the batch request to let go: of the current model while there is one (AABBCC, not ABCABC), unless
    another has waited beyond the bound; else the one that waits longest. waiting: oldest first. None: nobody waits."""
    if not waiting:
        return None
    if now_seconds - waiting[0].since_seconds < starvation_seconds:
        same = (index for index, one in enumerate(waiting) if one.model == current_model)
        return next(same, 0)
    return 0
