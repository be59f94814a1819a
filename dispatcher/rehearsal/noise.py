"""How far a simulated machine strays from its models' stated speeds: heavy-tailed per request, drifting over minutes.

Deliberately none of the shapes our predictor assumes: a rehearsal that agreed with it by construction teaches nothing.
"""

from __future__ import annotations

import math
import random

from dispatcher.replay.asks import Noise

_SLOW_ONE_IN = 25  # requests: that often one takes much longer, as on a machine that also does something else
_TAIL_SHAPE = 2.2  # Pareto: most slow ones about 1.3-2 times, one in some hundred ten times
_DRIFT_RATIO = 0.12  # amplitude of each of the two drifts
_DRIFT_SECONDS = (97.0, 611.0)  # their periods; no small ratio, so that they do not repeat together


class NoiseSource:
    """Seeded: the same requests at the same times get the same noise."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._phases = [self._chance.uniform(0, 2 * math.pi) for _ in _DRIFT_SECONDS]

    def at(self, elapsed_seconds: float) -> Noise:
        """For one request that arrives `elapsed_seconds` after the server's start."""
        chance = self._chance
        drift = math.prod(
            1 + _DRIFT_RATIO * math.sin(2 * math.pi * elapsed_seconds / period + phase)
            for period, phase in zip(_DRIFT_SECONDS, self._phases, strict=True)
        )
        tail = chance.paretovariate(_TAIL_SHAPE) if chance.random() < 1 / _SLOW_ONE_IN else 1.0
        return Noise(
            load_factor=drift * (1 + 0.3 * chance.gammavariate(0.8, 1)),
            prefill_factor=drift * tail * chance.triangular(0.85, 1.25, 0.95),
            decode_factor=drift * tail * chance.triangular(0.9, 1.15, 0.98),
            scheduler_seconds=min(0.015, 0.001 + chance.expovariate(1 / 0.001)),  # 1-4 ms, up to 15 (rule 2)
        )
