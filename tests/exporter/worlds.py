"""A collector with what the daemon hands to it, and everything it exposes as values."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families as parse_text

from dispatcher.clock import ManualClock
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Cached, Reloaded
from dispatcher.vocabulary.experiment import ArmObserved, ExperimentTurned
from dispatcher.vocabulary.fleet import FleetView, Place
from dispatcher.vocabulary.profile import Measured, Profiles, Rates
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.settings import GIB, Settings
from dispatcher.vocabulary.signal import Snapshot, UnknownReason
from exporter.app import exposition_of
from exporter.collect import Collector
from tests.builders import (
    LLAMA,
    NOW,
    QWEN,
    a_fleet,
    a_place_view,
    a_ready_view,
    a_snapshot,
    some_profiles,
)
from tests.history.some_events import (
    a_completed,
    a_decided,
    a_leased,
    a_relayed,
    a_sampled,
    a_start,
    a_stop,
)

ANSWERED = Timings(
    total_seconds=8.0,
    load_seconds=0.5,
    prompt_eval_seconds=1.5,
    eval_seconds=5.0,
    prompt_tokens=300,
    output_tokens=101,
)


class World:
    """What the daemon hands to the collector; a test replaces what it is about."""

    def __init__(self) -> None:
        self.clock = ManualClock(NOW)
        self.fleet: FleetView = a_fleet()
        self.snapshot: Snapshot = a_snapshot()
        self.profiles: Profiles = some_profiles()
        self.settings = Settings()
        self.process: dict[str, float] = {}
        self.queues: tuple[Line, ...] = ()
        self.collector = Collector(
            clock=self.clock,
            fleet=lambda: self.fleet,
            snapshot=lambda: self.snapshot,
            profiles=lambda: self.profiles,
            settings=lambda: self.settings,
            process=lambda: self.process,
            queues=lambda: self.queues,
            version="1.2.3",
        )
        self.exposition = exposition_of(self.collector)

    def tell(self, *events) -> None:
        for event in events:
            self.collector.on_event(event)

    def text(self, accept: str | None = None) -> str:
        return self.exposition(accept)[0].decode()

    def samples(self) -> dict[tuple, float]:
        """(name, label=value…) → value of everything exposed."""
        return {
            (sample.name, *sorted(f"{name}={value}" for name, value in sample.labels.items())): sample.value
            for family in parse_text(self.text())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, *sorted(f"{key}={value}" for key, value in labels.items())))


def a_turned_experiment(name: str = "margin", before: str = "none", after: str = "running") -> ExperimentTurned:
    return ExperimentTurned(at_seconds=NOW, experiment_id=name, before=before, after=after, because="")


def a_line(place: Place, **waiting: int) -> Line:
    limits = {"high": 64, "normal": 256, "batch": 1024}
    there = {"high": 0, "normal": 0, "batch": 0, **waiting}
    return Line(place=place, running=1, draining=0, slots=1, waiting=there, limits=limits)


def a_busy_world(world: World) -> World:
    """Something of everything, so that no family is empty."""
    world.fleet = a_fleet(a_ready_view(LLAMA, version="0.17.4", measured_bytes=3 * GIB), a_place_view(QWEN))
    rates = Rates(decode_tokens_per_second=Measured(value=20.0, n=8))
    world.profiles = some_profiles(rates={LLAMA: rates})
    world.process = {"abandoned_threads": 1, "history_dropped": 2, "retry_budget_ratio": 0.2, "cache_bytes": 10}
    world.queues = (a_line(LLAMA, high=3),)
    world.tell(
        a_decided(),
        a_decided(place=None),
        a_leased(),
        a_completed(timings=ANSWERED),
        a_start(),
        a_start(ok=False, error_type="load_timeout"),
        a_stop(),
        a_sampled(failures={"prometheus": UnknownReason.PROM_UNREACHABLE}, missed_ticks=2),
        a_relayed(LLAMA),
        a_relayed(LLAMA, before=LLAMA, cause="connect"),
        a_relayed(QWEN, before=LLAMA, cause="server_error"),
        Cached(at_seconds=NOW, model="llama3.2:3b", hit=True),
        Cached(at_seconds=NOW, model="llama3.2:3b", hit=False),
        Reloaded(at_seconds=NOW, ok=False, because="a typo"),
        a_turned_experiment(),
        ArmObserved(at_seconds=NOW, experiment_id="margin", arm="B"),
    )
    world.collector.observe_loop_lag(0.002)
    return world
