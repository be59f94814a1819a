"""Online sums of a metric in one arm, and from them its mean and the variance of that mean.

The unit of analysis is the unit that was assigned. Requests of one agent resemble each other and share an arm:
counted as independent they make the variance several times too small, and an A/A comparison "finds" a winner. So the
variance of the mean is that between units (the linearised ratio estimator of cluster sampling):

    m = Σ X / Σ N        V = K / (K − 1) · Σ (X − m N)² / (Σ N)²        K = (Σ N)² / Σ N²

X: sum over one unit, N: its observations. K is Kish's effective number of units; where every request is a unit of its
own, K = n and V = s² / n, the textbook's. Shared units fall into BUCKETS buckets by hash, which bounds the state; two
agents in one bucket are one unit then, which costs a little power and no validity.
"""

from __future__ import annotations

import hashlib

from dispatcher.vocabulary.experiment import Spread, Sums

BUCKETS = 256
NO_CLUSTERS: tuple[tuple[float, int], ...] = ((0.0, 0),) * BUCKETS


def added(sums: Sums, loss: float, unit: str, *, shared: bool, clipped: bool = False) -> Sums:
    """One observation more."""
    origin = sums.origin if sums.n else loss
    x, clusters = loss - origin, sums.clusters
    before, count = 0.0, 0
    if shared:
        bucket = bucket_of(unit)
        clusters = clusters or NO_CLUSTERS
        before, count = clusters[bucket]
        clusters = (*clusters[:bucket], (before + x, count + 1), *clusters[bucket + 1 :])
    after = before + x
    return Sums(
        origin=origin,
        n=sums.n + 1,
        total=sums.total + x,
        squares=sums.squares + after * after - before * before,
        products=sums.products + after * (count + 1) - before * count,
        sizes=sums.sizes + 2 * count + 1,
        clusters=clusters,
        clipped=sums.clipped + clipped,
    )


def bucket_of(unit: str) -> int:
    return hashlib.blake2b(unit.encode("utf-8", "backslashreplace"), digest_size=1).digest()[0]


def mean(sums: Sums) -> float | None:
    return sums.origin + sums.total / sums.n if sums.n else None


def effective_units(sums: Sums) -> float:
    """Kish: how many units of equal size would say as much. 0 when there is nothing."""
    return sums.n * sums.n / sums.sizes if sums.sizes else 0.0


def variance_of_mean(sums: Sums) -> float | None:
    """None below two effective units: one cannot differ from itself."""
    units = effective_units(sums)
    if units < 2:
        return None
    m = sums.total / sums.n
    between = sums.squares - 2 * m * sums.products + m * m * sums.sizes
    return max(0.0, between) / sums.n**2 * units / (units - 1)


def spread_with(spread: Spread, value: float) -> Spread:
    """Welford's step."""
    n = spread.n + 1
    deviation = value - spread.mean
    centre = spread.mean + deviation / n
    return Spread(n=n, mean=centre, deviations=spread.deviations + deviation * (value - centre))
