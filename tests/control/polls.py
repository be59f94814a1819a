"""Samples of a quiet healthy host, and a trust that is polled with them."""

from __future__ import annotations

from dispatcher.control.trust import TrustState, trusted
from dispatcher.vocabulary.settings import (
    GIB,
    Settings,
)
from dispatcher.vocabulary.signal import Sample, Snapshot, UnknownReason
from tests.builders import NOW, a_fleet, some_profiles

MEMORY = "host_memory_available_bytes"
ALL_SAMPLES = {
    MEMORY: 12.0 * GIB,
    "host_memory_total_bytes": 16.0 * GIB,
    "host_cpu_busy_ratio": 0.1,
    "host_cpu_count": 4.0,
    "host_cpu_steal_ratio": 0.0,
    "host_memory_pressure_ratio": 0.0,
    "host_memory_pressure_full_ratio": 0.0,
    "host_cpu_pressure_ratio": 0.0,
}


def some_samples(at: float = NOW, source: str = "prometheus", **values: float | UnknownReason) -> list[Sample]:
    return [
        Sample(signal=name, value=None, at_seconds=at, source=source, unknown=value)
        if isinstance(value, UnknownReason)
        else Sample(signal=name, value=value, at_seconds=at, source=source)
        for name, value in {**ALL_SAMPLES, **values}.items()
    ]


class Trust:
    """One trust, poll after poll; only what a test names differs from a quiet healthy host."""

    def __init__(self, *, fleet=None, settings=None, free_bytes=100 * GIB) -> None:
        self.fleet = fleet or a_fleet()
        self.settings = settings or Settings()
        self.free_bytes = free_bytes
        self.state = TrustState()

    def poll(self, now: float, *, failures: dict[str, UnknownReason] | None = None, **sources) -> Snapshot:
        self.state, snapshot = trusted(
            self.state,
            sources,
            failures or {},
            self.fleet,
            some_profiles(),
            self.settings,
            now,
            lambda view, snapshot: self.free_bytes,
        )
        return snapshot


DOWN = {"prometheus": UnknownReason.PROM_UNREACHABLE}
