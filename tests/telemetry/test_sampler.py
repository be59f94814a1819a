from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from dispatcher.clock import ManualClock, SystemClock
from dispatcher.errors import HostUnreadable, PrometheusUnreachable
from dispatcher.telemetry.sampler import Sampler
from dispatcher.vocabulary.event import Event, Sampled, Turned
from dispatcher.vocabulary.settings import PrometheusSettings, Settings, TelemetrySettings
from dispatcher.vocabulary.signal import Freshness, Sample, UnknownReason
from tests.builders import NOW, PHI, a_fleet, a_place_view, some_profiles

GOOD = {"host_memory_available_bytes": 12e9, "host_memory_total_bytes": 16e9, "host_cpu_busy_ratio": 0.1}
SETTINGS = Settings(
    telemetry=TelemetrySettings(interval_seconds=0.01, prometheus=PrometheusSettings(timeout_seconds=0.1))
)


class Told:
    """A source that says what it is told to say, raises it, or hangs for ever (None)."""

    def __init__(self, name: str, says: dict[str, float] | Exception | None) -> None:
        self.name = name
        self.says = says
        self.asked = 0
        self.queries = 1

    async def sample(self, now_seconds: float) -> Sequence[Sample]:
        self.asked += 1
        if self.says is None:
            await asyncio.Event().wait()
        if isinstance(self.says, Exception):
            raise self.says
        return [
            Sample(signal=signal, value=value, at_seconds=now_seconds, source=self.name)
            for signal, value in self.says.items()
        ]


class Bench:
    """A sampler, its sources and what it emitted."""

    def __init__(self, *sources: Told, settings: Settings = SETTINGS, clock=None, fleet=None) -> None:
        self.sources = list(sources)
        self.events: list[Event] = []
        self.clock = clock or ManualClock(NOW)
        self.fleet = fleet or a_fleet()
        self.sampler = Sampler(
            lambda: settings, self.clock, lambda: self.sources, lambda: self.fleet, some_profiles, self.events.append
        )

    @property
    def turned(self) -> list[tuple[str, str, str, str]]:
        return [
            (event.what, event.subject, event.before, event.after) for event in self.events if isinstance(event, Turned)
        ]

    @property
    def sampled(self) -> list[Sampled]:
        return [event for event in self.events if isinstance(event, Sampled)]


async def test_before_the_first_poll_nothing_is_known():
    snapshot = Bench().sampler.snapshot()

    assert (0, Freshness.BLIND, UnknownReason.NEVER_SEEN) == (
        snapshot.number,
        snapshot.freshness,
        snapshot.reading("host_memory_available_bytes").unknown,
    )


async def test_a_poll_replaces_the_snapshot_whole_and_says_so_once():
    bench = Bench(Told("prometheus", GOOD), Told("host", GOOD))

    await bench.sampler.poll_once()

    assert [(1, 2, {})] == [(event.snapshot.number, event.queries, event.failures) for event in bench.sampled]
    assert bench.sampled[0].snapshot is bench.sampler.snapshot()
    assert 12e9 == bench.sampler.snapshot().reading("host_memory_available_bytes").value


@pytest.mark.parametrize(
    ("name", "says", "failure"),
    [
        ("prometheus", PrometheusUnreachable("gone"), "prom_unreachable"),
        ("prometheus", None, "prom_unreachable"),
        ("prometheus", ZeroDivisionError("a bug of ours"), "prom_error"),
        ("host", HostUnreadable("no /proc"), "host_unreadable"),
        ("host", KeyError("a bug of ours"), "host_unreadable"),
        ("rehearsal", KeyError("a bug of ours"), "never_seen"),
    ],
)
async def test_whatever_one_source_does_the_others_are_heard(name, says, failure):
    other = Told("host" if name == "prometheus" else "prometheus", GOOD)
    bench = Bench(Told(name, says), other)

    await bench.sampler.poll_once()

    assert [{name: failure}] == [event.failures for event in bench.sampled]


async def test_sources_are_asked_at_the_same_time():
    meeting = asyncio.Barrier(2)

    class Meets(Told):
        async def sample(self, now_seconds: float) -> Sequence[Sample]:
            await meeting.wait()
            return await super().sample(now_seconds)

    bench = Bench(Meets("prometheus", GOOD), Meets("host", GOOD))
    await bench.sampler.poll_once()

    assert {} == bench.sampled[0].failures


async def test_a_source_turns_once_per_change_and_not_per_poll():
    prometheus, host = Told("prometheus", PrometheusUnreachable("gone")), Told("host", GOOD)
    bench = Bench(prometheus, host)

    for says in (
        prometheus.says,
        GOOD,
        GOOD,
        PrometheusUnreachable("gone again"),
        PrometheusUnreachable("still"),
        GOOD,
    ):
        prometheus.says = says
        bench.clock.advance(5)
        await bench.sampler.poll_once()
    bench.sources.remove(prometheus)
    await bench.sampler.poll_once()

    assert [
        ("source", "host", "unseen", "answering"),  # prometheus, auto and never seen, is no news
        ("source", "prometheus", "unseen", "answering"),
        ("source", "prometheus", "answering", "prom_unreachable"),
        ("source", "prometheus", "prom_unreachable", "answering"),
        ("source", "prometheus", "answering", "not_asked"),
    ] == bench.turned
    assert "gone again" in [event.because for event in bench.events if isinstance(event, Turned)]


async def test_a_latch_turns_once_and_says_why():
    host = Told("host", GOOD)
    bench = Bench(host)
    for available in (12e9, 50e6, 50e6, 12e9):
        host.says = {**GOOD, "host_memory_available_bytes": available}
        bench.clock.advance(5)
        await bench.sampler.poll_once()

    latches = [event for event in bench.events if isinstance(event, Turned) and event.what == "latch"]
    assert [("memory_hard", "open", "closed"), ("memory_hard", "closed", "open")] == [
        (event.subject, event.before, event.after) for event in latches if event.subject == "memory_hard"
    ]
    assert "50000000 bytes available, hard limit 320000000" == latches[0].because


async def test_memory_short_names_its_place_and_counts_what_may_be_evicted():
    bench = Bench(Told("host", {**GOOD, "host_memory_available_bytes": 2e9}), fleet=a_fleet(a_place_view(PHI)))

    await bench.sampler.poll_once()

    assert [(PHI, "memory_short:docker:phi/phi3:mini", "closed")] == [
        (event.place, event.subject, event.after)
        for event in bench.events
        if isinstance(event, Turned) and event.what == "latch"
    ]


async def test_the_loop_goes_on_polling_whatever_happens_and_counts_the_ticks_it_missed():
    hanging = Told("prometheus", None)  # 1.5 s until given up, at 0.01 s per tick
    bench = Bench(hanging, Told("host", GOOD), clock=SystemClock())
    loop = asyncio.create_task(bench.sampler.run())
    async with asyncio.timeout(30):
        while len(bench.sampled) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    hanging.says = ValueError("a bug of ours")
    async with asyncio.timeout(30):
        while len(bench.sampled) < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    loop.cancel()

    assert 0 == bench.sampled[0].missed_ticks
    assert bench.sampled[1].missed_ticks > 10
    with pytest.raises(asyncio.CancelledError):
        await loop


async def test_a_listener_that_fails_does_not_end_the_loop():
    def emit(event: Event) -> None:
        raise RuntimeError("a broken listener")

    sampler = Sampler(lambda: SETTINGS, SystemClock(), lambda: [Told("host", GOOD)], a_fleet, some_profiles, emit)
    loop = asyncio.create_task(sampler.run())
    async with asyncio.timeout(30):
        while sampler.snapshot().number < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    loop.cancel()
