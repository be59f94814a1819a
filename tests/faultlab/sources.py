"""What the sampler looks at in the laboratory: a fake Prometheus, read by the real parser, and a fake host."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from dispatcher.clock import ManualClock
from dispatcher.errors import HostUnreadable, PrometheusRefused, PrometheusUnreachable
from dispatcher.vocabulary.settings import SignalSettings
from dispatcher.vocabulary.signal import SIGNALS, Sample
from dispatcher.wire import promql

SCRAPE_SECONDS = 5.0
LATE_SECONDS = 25.0
WATCHED = (
    "host_memory_available_bytes",
    "host_memory_total_bytes",
    "host_cpu_busy_ratio",
    "host_cpu_count",
    "host_memory_pressure_full_ratio",
)
SWITCHED_OFF = {name: SignalSettings(expr="", age_of="") for name in SIGNALS if name not in WATCHED}
ASKED = {name: promql.DEFAULT_SIGNALS[name] for name in WATCHED}
TROUBLES = ("unreachable", "error", "hangs", "late", "stale", "missing", "nan", "absurd", "twice", "garbage")
Truth = Callable[[], Mapping[str, float]]


class FakePrometheus:
    """Scrapes the truth every five seconds and answers the union query with it. trouble: one of TROUBLES, or ""."""

    name = "prometheus"

    def __init__(self, steady: ManualClock, truth: Truth, wall_seconds: Callable[[], float]) -> None:
        self._steady = steady
        self._truth = truth
        self._wall_seconds = wall_seconds
        self._scrapes: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=16)
        self.trouble = ""
        self.clock_error_seconds = 0.0  # of the machine it runs on

    async def sample(self, now_seconds: float) -> Sequence[Sample]:
        if self.trouble == "unreachable":
            raise PrometheusUnreachable("connection refused")
        if self.trouble == "error":
            raise PrometheusRefused("HTTP 500")
        while self.trouble == "hangs":  # noqa: ASYNC110  virtual time: looking again costs nothing
            await asyncio.sleep(1.0)
        await asyncio.sleep(0.01)
        try:
            return promql.samples(self._vector(), ASKED, now_seconds, self._wall_seconds())
        except ValueError as cause:
            raise PrometheusRefused(str(cause)) from cause

    def _vector(self) -> object:
        if self.trouble == "garbage":
            return [{"metric": {}, "value": [0, "abc"]}]
        at, values = self._scrape()
        age = self._steady.now_seconds() - at
        query_time = self._wall_seconds() + self.clock_error_seconds
        rows = []
        for name, value in values.items():
            if self.trouble == "missing" and name == "host_memory_available_bytes":
                continue
            told = {"nan": "NaN", "absurd": "-1"}.get(self.trouble, str(value))
            rows += [_row(name, query_time, told)] * (2 if self.trouble == "twice" else 1)
            rows.append(_row(f"age:{name}", query_time, str(age)))
        return rows

    def _scrape(self) -> tuple[float, Mapping[str, float]]:
        now = self._steady.now_seconds()
        if self.trouble != "stale" and (not self._scrapes or now - self._scrapes[-1][0] >= SCRAPE_SECONDS):
            self._scrapes.append((now, dict(self._truth())))
        if self.trouble == "late":
            old = [scrape for scrape in self._scrapes if now - scrape[0] >= LATE_SECONDS]
            return old[-1] if old else self._scrapes[0]
        return self._scrapes[-1] if self._scrapes else (now, dict(self._truth()))


def _row(signal: str, query_time_seconds: float, told: str) -> dict[str, object]:
    return {"metric": {"signal": signal}, "value": [query_time_seconds, told]}


class FakeHost:
    """This host's own readings, of the moment. trouble: "" or "unreadable"."""

    name = "host"

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self.trouble = ""

    async def sample(self, now_seconds: float) -> Sequence[Sample]:
        if self.trouble:
            raise HostUnreadable("/proc/meminfo cannot be read")
        return [
            Sample(signal=name, value=value, at_seconds=now_seconds, source=self.name)
            for name, value in self._truth().items()
        ]
