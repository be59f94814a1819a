"""This host's own word: psutil and /proc. It stands in, per signal, where Prometheus has nothing fresh to say.

CPU and pressures are differences of the kernel's counters between two looks as far apart as the signal's mean is long
(MEAN_SECONDS: each latch has its own), as Prometheus' rates are: one busy second is no busy host. Until the daemon has
run so long, a pressure is the kernel's own running mean that is at least as slow; it never closes a latch too early.
The kernel without PSI gives no pressure samples: absence, not 0.
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
from dispatcher.telemetry.gpu_probe import GpuProbe
from dispatcher.vocabulary.signal import MEAN_SECONDS, Sample, UnknownReason
from dispatcher.wire.host import Pressure, parse_meminfo, parse_pressure

WINDOW_SECONDS = max(MEAN_SECONDS.values())
PRESSURES = ("host_memory_pressure_ratio", "host_memory_pressure_full_ratio", "host_cpu_pressure_ratio")
KERNEL_MEAN_SECONDS = 10.0  # the shorter of the two running means taken from PSI; the other is a minute's
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
    """clock: for the time between the first two looks. proc: where Linux keeps its counters. gpu: asked beside the
    polls; without one, or without nvidia-smi, nothing is said of video memory."""

    name = NAME

    def __init__(self, *, clock: Clock | None = None, proc: Path = Path("/proc"), gpu: GpuProbe | None = None) -> None:
        self._clock = clock or SystemClock()
        self._proc = proc
        self._gpu = gpu
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
        video = self._gpu.newest(now_seconds) if self._gpu is not None else None
        return told if video is None else [*told, video]

    async def close(self) -> None:
        if self._gpu is not None:
            await self._gpu.close()

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
        found = {name: self._pressure_ratio(name, look) for name in PRESSURES}
        return [_told(name, value, look.at_seconds) for name, value in found.items() if value is not None]

    def _pressure_ratio(self, signal: str, look: _Look) -> float | None:
        """Stalled seconds per second since the youngest look that is a whole mean old."""
        mean_seconds = MEAN_SECONDS[signal]
        after = _stall(signal, look)
        if after is None:
            return None
        old = [one for one in self._looks if look.at_seconds - one.at_seconds >= mean_seconds]
        before = _stall(signal, old[-1]) if old else None
        if before is None or before.total_seconds is None or after.total_seconds is None:
            return after.avg10_ratio if mean_seconds <= KERNEL_MEAN_SECONDS else after.avg60_ratio
        return (after.total_seconds - before.total_seconds) / (look.at_seconds - old[-1].at_seconds)

    def _pressure(self, resource: str) -> Pressure | None:
        text = self._text(f"pressure/{resource}")
        return parse_pressure(text) if text is not None else None

    def _text(self, name: str) -> str | None:
        """None where there is no such file, or the kernel has PSI built in and switched off (EOPNOTSUPP on reading)."""
        try:
            return (self._proc / name).read_text()
        except OSError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stall:
    """Of one kind in one file of PSI."""

    avg10_ratio: float | None
    avg60_ratio: float | None
    total_seconds: float | None


def _stall(signal: str, look: _Look) -> _Stall | None:
    """None: this kernel has no such file."""
    told = look.cpu if signal == "host_cpu_pressure_ratio" else look.memory
    if told is None:
        return None
    if signal == "host_memory_pressure_full_ratio":
        return _Stall(
            avg10_ratio=told.full_avg10_ratio, avg60_ratio=told.full_avg60_ratio, total_seconds=told.full_total_seconds
        )
    return _Stall(
        avg10_ratio=told.some_avg10_ratio, avg60_ratio=told.some_avg60_ratio, total_seconds=told.some_total_seconds
    )


def _told(signal: str, value: float | None, at_seconds: float) -> Sample:
    if value is not None and signal.endswith("_ratio"):
        value = min(1.0, max(0.0, value))  # iowait may run backwards
    unknown = UnknownReason.EMPTY if value is None else None
    return Sample(signal=signal, value=value, at_seconds=at_seconds, source=NAME, unknown=unknown)
