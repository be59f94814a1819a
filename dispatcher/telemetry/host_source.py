"""This host's own word: psutil and /proc. It stands in, per signal, where Prometheus has nothing fresh to say.

CPU is the difference of two looks at least a minute apart once the daemon has run so long, as Prometheus' rates are:
one busy second is no busy host. The kernel without PSI gives no pressure samples: absence, not 0.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dispatcher.clock import Clock, SystemClock
from dispatcher.errors import HostUnreadable
from dispatcher.vocabulary.signal import Sample, UnknownReason
from dispatcher.wire.host import Pressure, parse_meminfo, parse_pressure

WINDOW_SECONDS = 60.0
FIRST_LOOK_SECONDS = 0.5  # between the first two looks: a daemon's first answer should not wait 5 s for the CPU
NAME = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """Counters as of one moment. CPU in seconds since boot, over all CPUs; None where the system does not count it."""

    at_seconds: float
    cpu_total_seconds: float
    cpu_idle_seconds: float  # idle and iowait
    cpu_steal_seconds: float | None
    memory: Pressure | None
    cpu: Pressure | None


class HostSource:
    """clock: for the time between the first two looks. proc: where Linux keeps its counters."""

    name = NAME

    def __init__(self, *, clock: Clock | None = None, proc: Path = Path("/proc")) -> None:
        self._clock = clock or SystemClock()
        self._proc = proc
        self._looks: deque[_Look] = deque()

    async def sample(self, now_seconds: float) -> Sequence[Sample]:
        """All host signals this system can give, read inline: less than a millisecond. Raises HostUnreadable."""
        try:
            if not self._looks:
                self._looks.append(self._look(now_seconds))
                await asyncio.sleep(FIRST_LOOK_SECONDS)
                now_seconds = self._clock.now_seconds()
            look = self._look(now_seconds)
            told = [*self._memory(now_seconds), *self._cpu(look), *self._pressures(look)]
        except (OSError, psutil.Error, ValueError, RuntimeError) as cause:
            raise HostUnreadable(
                f"This host's own memory and CPU cannot be read ({cause}). Only Prometheus is left to decide on. "
                "Try: cat /proc/meminfo /proc/stat   as the user the daemon runs as."
            ) from cause
        self._keep(look)
        return told

    def _keep(self, look: _Look) -> None:
        """One look older than the window stays: the difference to it spans the whole window."""
        self._looks.append(look)
        while len(self._looks) > 2 and look.at_seconds - self._looks[1].at_seconds >= WINDOW_SECONDS:
            self._looks.popleft()

    def _look(self, now_seconds: float) -> _Look:
        times = psutil.cpu_times()
        counted = {name: value for name, value in times._asdict().items() if not name.startswith("guest")}
        return _Look(  # guest time is in user time already
            at_seconds=now_seconds,
            cpu_total_seconds=sum(counted.values()),
            cpu_idle_seconds=counted["idle"] + counted.get("iowait", 0.0),
            cpu_steal_seconds=counted.get("steal"),
            memory=self._pressure("memory"),
            cpu=self._pressure("cpu"),
        )

    def _memory(self, now_seconds: float) -> list[Sample]:
        found = parse_meminfo(self._text("meminfo") or "")
        if "MemAvailable" in found and "MemTotal" in found:
            available, total = found["MemAvailable"], found["MemTotal"]
        else:
            memory = psutil.virtual_memory()
            available, total = memory.available, memory.total
        return [
            _told("host_memory_available_bytes", available, now_seconds),
            _told("host_memory_total_bytes", total, now_seconds),
        ]

    def _cpu(self, look: _Look) -> list[Sample]:
        first = self._looks[0]
        total = look.cpu_total_seconds - first.cpu_total_seconds
        idle = look.cpu_idle_seconds - first.cpu_idle_seconds
        told = [_told("host_cpu_busy_ratio", 1 - idle / total if total > 0 else None, look.at_seconds)]
        if look.cpu_steal_seconds is not None and first.cpu_steal_seconds is not None:
            steal = look.cpu_steal_seconds - first.cpu_steal_seconds
            told.append(_told("host_cpu_steal_ratio", steal / total if total > 0 else None, look.at_seconds))
        count = psutil.cpu_count()
        return [*told, _told("host_cpu_count", count, look.at_seconds)] if count else told

    def _pressures(self, look: _Look) -> list[Sample]:
        first = self._looks[0]
        found = {
            "host_memory_pressure_ratio": _some(first.memory, look.memory, first, look),
            "host_memory_pressure_full_ratio": _full(first.memory, look.memory, first, look),
            "host_cpu_pressure_ratio": _some(first.cpu, look.cpu, first, look),
        }
        return [_told(name, value, look.at_seconds) for name, value in found.items() if value is not None]

    def _pressure(self, resource: str) -> Pressure | None:
        text = self._text(f"pressure/{resource}")
        return parse_pressure(text) if text is not None else None

    def _text(self, name: str) -> str | None:
        """None where there is no such file, or the kernel has PSI built in and switched off (EOPNOTSUPP on reading)."""
        try:
            return (self._proc / name).read_text()
        except OSError:
            return None


def _some(before: Pressure | None, after: Pressure | None, first: _Look, look: _Look) -> float | None:
    if before is None or after is None:
        return None
    return _rate(before.some_total_seconds, after.some_total_seconds, after.some_avg60_ratio, first, look)


def _full(before: Pressure | None, after: Pressure | None, first: _Look, look: _Look) -> float | None:
    if before is None or after is None:
        return None
    return _rate(before.full_total_seconds, after.full_total_seconds, after.full_avg60_ratio, first, look)


def _rate(
    before: float | None, after: float | None, avg60_ratio: float | None, first: _Look, look: _Look
) -> float | None:
    """Stalled seconds per second over the window; the kernel's own running minute until ours has filled."""
    passed = look.at_seconds - first.at_seconds
    if before is None or after is None or passed < WINDOW_SECONDS:
        return avg60_ratio
    return (after - before) / passed


def _told(signal: str, value: float | None, at_seconds: float) -> Sample:
    if value is not None and signal.endswith("_ratio"):
        value = min(1.0, max(0.0, value))  # iowait may run backwards
    unknown = UnknownReason.EMPTY if value is None else None
    return Sample(signal=signal, value=value, at_seconds=at_seconds, source=NAME, unknown=unknown)
