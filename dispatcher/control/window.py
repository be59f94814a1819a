"""The last samples of one thing, and what they say: a median that one outlier does not move, and over how many."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from dispatcher.vocabulary.profile import NOTHING_MEASURED, Measured

WINDOW_SAMPLES = 100
FADES_AFTER_SECONDS = 7 * 86400.0  # a sample older than this weighs less …
FADE_HALF_LIFE_SECONDS = 2 * 86400.0  # … half of it every so often


def weight(age_seconds: float) -> float:
    """1 for a week, then fading out."""
    if age_seconds <= FADES_AFTER_SECONDS:
        return 1.0
    return float(0.5 ** ((age_seconds - FADES_AFTER_SECONDS) / FADE_HALF_LIFE_SECONDS))


def weighted_median(samples: Iterable[tuple[float, float]]) -> Measured:
    """Of (value, weight). n is the sum of the weights, rounded; NOTHING_MEASURED when that is 0."""
    ordered = sorted(samples)
    total = sum(weight for _, weight in ordered)
    n = round(total)
    if n == 0:
        return NOTHING_MEASURED
    half, seen = total / 2, 0.0
    for index, (value, share) in enumerate(ordered):
        seen += share
        if abs(seen - half) < 1e-9 and index + 1 < len(ordered):  # exactly between two
            return Measured(value=(value + ordered[index + 1][0]) / 2, n=n)
        if seen > half:
            return Measured(value=value, n=n)
    return Measured(value=ordered[-1][0], n=n)


class Window:
    """The last 100 (value, when). Values of one unit, whichever the owner says; those beyond its bounds, or NaN, are no
    samples: from a stored row or a caller anything may come, and one such value would spoil every reading."""

    __slots__ = ("_highest", "_lowest", "_samples")

    def __init__(self, lowest: float, highest: float) -> None:
        self._lowest, self._highest = lowest, highest
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW_SAMPLES)

    def __len__(self) -> int:
        return len(self._samples)

    def takes(self, value: float) -> bool:
        return self._lowest <= value <= self._highest

    def add(self, value: float, at_seconds: float) -> None:
        if self.takes(value):
            self._samples.append((value, at_seconds))

    def weighted(self, now_seconds: float) -> list[tuple[float, float]]:
        return [(value, weight(now_seconds - at_seconds)) for value, at_seconds in self._samples]

    def median(self, now_seconds: float) -> Measured:
        return weighted_median(self.weighted(now_seconds))

    def median_of_slow(self, now_seconds: float, factor: float) -> Measured:
        """The median of those up to `factor` × the slow quarter: for rates that can only look too fast."""
        ordered = sorted(self.weighted(now_seconds))
        if not ordered:
            return NOTHING_MEASURED
        limit = factor * ordered[len(ordered) // 4][0]
        return weighted_median((value, share) for value, share in ordered if value <= limit)
