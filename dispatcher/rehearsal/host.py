"""The simulated host: what its sensors would say while simulated models come and go. A telemetry source, by shape."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from dispatcher.vocabulary.settings import RehearsalSettings
from dispatcher.vocabulary.signal import Sample

_CPU_COUNT = 4.0
_CPU_BUSY_RATIO = 0.15  # of the workload beside the models
_CPU_NOISE_RATIO = 0.03


class SimulatedHost:
    """loaded_bytes: what all simulated models hold at the moment of asking."""

    name = "rehearsal"

    def __init__(self, settings: RehearsalSettings, loaded_bytes: Callable[[], int]) -> None:
        self._settings = settings
        self._loaded_bytes = loaded_bytes
        self._chance = random.Random(settings.seed)

    async def sample(self, now_seconds: float) -> Sequence[Sample]:
        total_bytes = self._settings.host_memory_bytes
        other_bytes = self._settings.host_other_bytes
        busy_ratio = self._chance.gauss(_CPU_BUSY_RATIO, _CPU_NOISE_RATIO)
        values = {
            "host_memory_total_bytes": float(total_bytes),
            "host_memory_available_bytes": float(max(0, total_bytes - other_bytes - self._loaded_bytes())),
            "host_cpu_busy_ratio": min(1.0, max(0.0, busy_ratio)),
            "host_cpu_steal_ratio": 0.0,
            "host_cpu_count": _CPU_COUNT,
        }
        return [
            Sample(signal=signal, value=value, at_seconds=now_seconds, source=self.name)
            for signal, value in values.items()
        ]
