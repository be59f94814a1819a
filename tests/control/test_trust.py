from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.control.trust import TrustState, fresh_seconds, scrape_interval_seconds, trusted
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import (
    GIB,
    MIB,
    PolicySettings,
    PrometheusSettings,
    Settings,
    TelemetrySettings,
)
from dispatcher.vocabulary.signal import SIGNALS, Freshness, Sample, Snapshot, UnknownReason
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_place_view, a_reading, a_ready_view, some_profiles

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


# ── which source ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_prometheus_is_believed_before_the_host():
    snapshot = Trust().poll(
        NOW, prometheus=some_samples(NOW - 10), host=some_samples(source="host", **{MEMORY: 1.0 * GIB})
    )

    assert ("prometheus", 12.0 * GIB) == (snapshot.reading(MEMORY).source, snapshot.reading(MEMORY).value)
    assert ("prometheus", Freshness.FRESH) == (snapshot.source, snapshot.freshness)


def test_the_host_stands_in_per_signal_and_the_snapshot_says_mixed():
    snapshot = Trust().poll(
        NOW,
        prometheus=some_samples(host_cpu_busy_ratio=UnknownReason.EMPTY),
        host=some_samples(source="host", host_cpu_busy_ratio=0.4),
    )

    assert ("host", 0.4) == (
        snapshot.reading("host_cpu_busy_ratio").source,
        snapshot.reading("host_cpu_busy_ratio").value,
    )
    assert "prometheus" == snapshot.reading(MEMORY).source
    assert "mixed" == snapshot.source


@pytest.mark.parametrize(
    ("fleet", "telemetry"),
    [
        pytest.param(a_fleet(local=False), TelemetrySettings(), id="places elsewhere"),
        pytest.param(a_fleet(), TelemetrySettings(host_enabled=False), id="switched off"),
    ],
)
def test_the_host_never_speaks_for_another_machine(fleet, telemetry):
    trust = Trust(fleet=fleet, settings=Settings(telemetry=telemetry))

    snapshot = trust.poll(NOW, failures=DOWN, host=some_samples(source="host"))

    assert (None, "none", Freshness.BLIND) == (snapshot.reading(MEMORY).value, snapshot.source, snapshot.freshness)


def test_a_failing_prometheus_leaves_its_last_reading_until_that_is_stale_then_the_host_speaks():
    trust = Trust()
    trust.poll(NOW, prometheus=some_samples())

    soon = trust.poll(NOW + 20, failures=DOWN, host=some_samples(NOW + 20, "host"))
    later = trust.poll(NOW + 50, failures=DOWN, host=some_samples(NOW + 50, "host"))

    assert ("prometheus", "host") == (soon.source, later.source)
    assert (Freshness.FRESH, Freshness.FRESH) == (soon.freshness, later.freshness)
    assert DOWN == soon.failing


@pytest.mark.parametrize(
    ("age_seconds", "value", "freshness", "unknown"),
    [
        (45, 12.0 * GIB, Freshness.FRESH, None),
        (46, 12.0 * GIB, Freshness.STALE, None),
        (300, 12.0 * GIB, Freshness.STALE, None),
        (301, None, Freshness.BLIND, UnknownReason.PROM_STALE),
    ],
)
def test_with_nobody_else_a_reading_grows_stale_and_then_blind(age_seconds, value, freshness, unknown):
    trust = Trust(fleet=a_fleet(local=False))
    trust.poll(NOW, prometheus=some_samples())

    snapshot = trust.poll(NOW + age_seconds, failures=DOWN)

    reading = snapshot.reading(MEMORY)
    assert (value, freshness, unknown) == (reading.value, snapshot.freshness, reading.unknown)


def test_a_frozen_exporter_grows_stale_although_prometheus_answers():
    trust = Trust(fleet=a_fleet(local=False))

    seen = [trust.poll(NOW + at, prometheus=some_samples(NOW)).freshness for at in (0, 30, 60, 290, 310)]

    assert [Freshness.FRESH, Freshness.FRESH, Freshness.STALE, Freshness.STALE, Freshness.BLIND] == seen


def test_a_series_that_is_gone_ages_and_is_not_forgotten_at_once():
    trust = Trust(fleet=a_fleet(local=False))
    trust.poll(NOW, prometheus=some_samples())

    snapshot = trust.poll(NOW + 5, prometheus=some_samples(NOW + 5, **{MEMORY: UnknownReason.EMPTY}))

    assert 12.0 * GIB == snapshot.reading(MEMORY).value


@pytest.mark.parametrize("why", [UnknownReason.NOT_A_NUMBER, UnknownReason.ABSURD, UnknownReason.MULTI_SERIES])
def test_a_contradiction_is_unknown_at_once(why):
    trust = Trust(fleet=a_fleet(local=False))
    trust.poll(NOW, prometheus=some_samples())

    snapshot = trust.poll(NOW + 5, prometheus=some_samples(NOW + 5, **{MEMORY: why}))

    assert (None, why, Freshness.BLIND) == (
        snapshot.reading(MEMORY).value,
        snapshot.reading(MEMORY).unknown,
        snapshot.freshness,
    )


def test_rehearsal_readings_are_the_only_ones_while_there_are_any_and_leave_nothing_behind():
    trust = Trust()
    real = {"prometheus": some_samples(host_cpu_pressure_ratio=0.9)}
    rehearsed = [one for one in some_samples(source="rehearsal") if "pressure" not in one.signal]

    during = trust.poll(NOW, rehearsal=rehearsed, **real)
    after = trust.poll(NOW + 1, **real)

    assert ("rehearsal", None) == (during.source, during.reading("host_cpu_pressure_ratio").value)
    assert "prometheus" == after.source


# ── why unknown, and who is failing ──────────────────────────────────────────────────────────────────────────────────


def test_a_signal_nobody_ever_spoke_of_says_why_the_source_did_not():
    snapshot = Trust(fleet=a_fleet(local=False)).poll(NOW, failures=DOWN)

    assert {UnknownReason.PROM_UNREACHABLE} == {snapshot.reading(signal).unknown for signal in SIGNALS}


def test_without_any_source_everything_was_never_seen():
    snapshot = Trust().poll(NOW)

    assert {UnknownReason.NEVER_SEEN} == {snapshot.reading(signal).unknown for signal in SIGNALS}


@pytest.mark.parametrize(
    ("enabled", "seen_before", "failing"),
    [("auto", False, {}), ("auto", True, DOWN), ("true", False, DOWN), ("true", True, DOWN)],
)
def test_a_source_fails_only_when_it_is_configured_or_was_seen(enabled, seen_before, failing):
    telemetry = TelemetrySettings(prometheus=PrometheusSettings(enabled=enabled))
    trust = Trust(settings=Settings(telemetry=telemetry))
    if seen_before:
        trust.poll(NOW, prometheus=some_samples())

    snapshot = trust.poll(NOW + 5, failures=DOWN, host=some_samples(NOW + 5, "host"))

    assert failing == snapshot.failing


def test_subjects_that_are_gone_are_kept_until_blind_and_then_dropped():
    trust = Trust()
    key = ("container_memory_bytes", "phi")
    box = Sample(signal=key[0], subject=key[1], value=1.0, at_seconds=NOW, source="prometheus")
    gone = Sample(signal=key[0], value=None, at_seconds=NOW, source="prometheus", unknown=UnknownReason.EMPTY)

    first = trust.poll(NOW, prometheus=[*some_samples(), box])
    soon = trust.poll(NOW + 5, prometheus=[*some_samples(NOW + 5), gone])
    later = trust.poll(NOW + 400, prometheus=[*some_samples(NOW + 400), gone])

    assert [True, True, False] == [key in snapshot.readings for snapshot in (first, soon, later)]
    assert UnknownReason.EMPTY == later.reading("container_memory_bytes").unknown


# ── how often it is scraped ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_scrape_interval_is_the_median_gap_of_distinct_sample_times():
    trust = Trust()
    jitter = iter([0.0, 0.02, -0.01, 0.03, 0.0, 0.01, 0.0, 0.02])
    for at in (0, 5, 10, 15, 20, 25, 30, 35):
        sampled = NOW + at // 10 * 10 + next(jitter)  # scraped every 10 s, looked at every 5
        trust.poll(NOW + at, prometheus=some_samples(sampled))

    assert pytest.approx(10, abs=0.1) == scrape_interval_seconds(trust.state)


@pytest.mark.parametrize(
    ("gap_seconds", "limit_seconds"),
    [
        pytest.param(0.5, 15.0, id="scraped faster than polled: three polls"),
        pytest.param(10.0, 30.0, id="three scrapes"),
        pytest.param(200.0, 300.0, id="never beyond blind"),
    ],
)
def test_fresh_is_three_scrapes_but_at_least_three_polls(gap_seconds, limit_seconds):
    state = TrustState(times={MEMORY: (NOW, NOW + gap_seconds)})

    assert limit_seconds == fresh_seconds(state, "prometheus", MEMORY, Settings())


def test_one_outage_does_not_become_the_scrape_interval():
    trust = Trust()
    for at in (0, 15, 30, 230, 245, 260):
        trust.poll(NOW + at, prometheus=some_samples(NOW + at))

    assert 15 == scrape_interval_seconds(trust.state)


def test_snapshots_are_numbered():
    trust = Trust()

    assert [1, 2, 3] == [trust.poll(NOW + at).number for at in range(3)]


# ── latches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def latches_over(trust: Trust, values: list[tuple[float, float]], signal: str = "host_cpu_busy_ratio") -> list[bool]:
    """Whether any latch is held after each of (seconds from now, value)."""
    return [
        bool(trust.poll(NOW + at, prometheus=some_samples(NOW + at, **{signal: value})).latches) for at, value in values
    ]


@pytest.mark.parametrize(
    ("values", "held"),
    [
        pytest.param([0.9, 0.9, 0.9], [False, False, True], id="three in a row"),
        pytest.param([0.9, 0.1, 0.9, 0.9], [False, False, False, True], id="three of four"),
        pytest.param([0.9, 0.1, 0.1, 0.9, 0.9], [False] * 5, id="a spike now and then"),
        pytest.param([0.84, 0.84, 0.84, 0.84], [False] * 4, id="just below"),
        pytest.param([0.85, 0.85, 0.85], [False, False, True], id="exactly"),
    ],
)
def test_cpu_is_busy_after_three_of_four_samples(values, held):
    assert held == latches_over(Trust(), [(5.0 * i, value) for i, value in enumerate(values)])


def test_the_same_sample_looked_at_again_does_not_count_again():
    trust = Trust()

    for at in range(4):
        snapshot = trust.poll(NOW + at * 2, prometheus=some_samples(NOW, host_cpu_busy_ratio=0.99))

    assert frozenset() == snapshot.latches


def test_cpu_used_by_our_own_places_is_not_busy():
    mine = a_ready_view(LLAMA, cpu_cores=a_reading(3.6, at_seconds=NOW + 10), leases=1)

    assert [False] * 4 == latches_over(Trust(fleet=a_fleet(mine)), [(5.0 * i, 0.95) for i in range(4)])


def test_our_own_work_that_just_ended_is_not_taken_for_others():
    working = a_fleet(a_ready_view(LLAMA, cpu_cores=a_reading(3.8, at_seconds=NOW), leases=1))
    idle = a_fleet(a_ready_view(LLAMA, cpu_cores=a_reading(0.0, at_seconds=NOW + 60)))
    trust = Trust(fleet=working)
    busy = latches_over(trust, [(5.0 * i, 0.95) for i in range(12)])
    trust.fleet = idle
    # the host's reading is a mean over a minute: it falls as slowly as ours does
    falling = latches_over(trust, [(60 + 5.0 * i, 0.95 * (1 - i / 12)) for i in range(12)])

    assert [False] * 24 == busy + falling


def test_a_working_place_of_unknown_cpu_moves_no_latch():
    unknown = a_fleet(a_ready_view(LLAMA, leases=1))

    assert [False] * 4 == latches_over(Trust(fleet=unknown), [(5.0 * i, 0.99) for i in range(4)])


def test_an_idle_place_of_unknown_cpu_does_not_hide_a_busy_host():
    idle = a_fleet(a_ready_view(LLAMA))

    assert [False, False, True] == latches_over(Trust(fleet=idle), [(5.0 * i, 0.99) for i in range(3)])


def test_cpu_stays_busy_until_it_was_calm_for_five_minutes():
    trust = Trust()
    latches_over(trust, [(5.0 * i, 0.95) for i in range(3)])
    between = latches_over(trust, [(15 + 5.0 * i, 0.75) for i in range(80)])
    calm = latches_over(trust, [(500 + 5.0 * i, 0.5) for i in range(61)])

    assert [True] * 80 == between
    assert ([True] * 60, False) == (calm[:60], calm[60])


def test_what_was_not_seen_counts_little_toward_calm():
    trust = Trust()
    latches_over(trust, [(5.0 * i, 0.95) for i in range(3)])

    assert [True, True] == latches_over(trust, [(15, 0.1), (1000, 0.1)])


def test_unknown_opens_no_latch_and_closes_none():
    trust = Trust()
    latches_over(trust, [(5.0 * i, 0.95) for i in range(3)])
    blind = [trust.poll(NOW + at, failures=DOWN).latches for at in (100, 400, 900)]

    assert [frozenset({"cpu_busy"})] * 3 == blind


@pytest.mark.parametrize(
    ("signal", "value", "latch"),
    [
        ("host_cpu_pressure_ratio", 0.51, "cpu_busy"),
        ("host_memory_pressure_ratio", 0.11, "pressure_high"),
        ("host_memory_pressure_full_ratio", 0.06, "pressure_full"),
    ],
)
def test_pressure_closes_its_latch_at_once_and_leaves_after_five_calm_minutes(signal, value, latch):
    trust = Trust()
    closed = trust.poll(NOW, prometheus=some_samples(**{signal: value}))
    calm = [trust.poll(NOW + 5 + at, prometheus=some_samples(NOW + 5 + at)) for at in range(0, 305, 5)]

    assert frozenset({latch}) == closed.latches
    assert [latch in one.latches for one in calm] == [True] * 60 + [False]


def test_cpu_busy_stays_while_either_cause_lasts():
    trust = Trust()
    for at in (0, 5, 10):
        trust.poll(NOW + at, prometheus=some_samples(NOW + at, host_cpu_busy_ratio=0.95, host_cpu_pressure_ratio=0.9))
    for at in range(15, 400, 5):
        snapshot = trust.poll(NOW + at, prometheus=some_samples(NOW + at, host_cpu_pressure_ratio=0.9))

    assert frozenset({"cpu_busy"}) == snapshot.latches


@pytest.mark.parametrize(
    ("total", "available", "held"),
    [
        pytest.param(4.0 * GIB, [101.0 * MIB, 99.0 * MIB, 120.0 * MIB, 126.0 * MIB], [0, 1, 1, 0], id="100 MiB"),
        pytest.param(16.0 * GIB, [400.0 * MIB, 320.0 * MIB, 400.0 * MIB, 420.0 * MIB], [0, 1, 1, 0], id="2 percent"),
    ],
)
def test_memory_is_hard_at_once_and_over_at_once(total, available, held):
    trust = Trust()
    seen = [
        trust.poll(NOW + at, prometheus=some_samples(NOW + at, **{MEMORY: value, "host_memory_total_bytes": total}))
        for at, value in enumerate(available)
    ]

    assert [bool(expected) for expected in held] == ["memory_hard" in snapshot.latches for snapshot in seen]


def short(trust: Trust, at: float) -> frozenset[str]:
    return trust.poll(NOW + at, prometheus=some_samples(NOW + at)).latches


def test_memory_is_short_per_place_with_room_between_enter_and_leave():
    trust = Trust(fleet=a_fleet(a_place_view(LLAMA)))
    need = some_profiles().footprint_bytes(LLAMA.model, 4096)
    name = frozenset({"memory_short:docker:llama/llama3.2:3b"})
    seen = []
    for at, ratio in enumerate([1.11, 1.09, 1.2, 1.24, 1.26, 1.2]):
        trust.free_bytes = round(need * ratio)
        seen.append(short(trust, at))

    assert [frozenset(), name, name, name, frozenset(), frozenset()] == seen


def test_a_place_that_holds_memory_is_not_short_of_it_and_unknown_memory_moves_nothing():
    stopped, ready = a_fleet(a_place_view(QWEN)), a_fleet(a_ready_view(QWEN))
    trust = Trust(fleet=stopped, free_bytes=1)
    seen = [short(trust, 0)]
    trust.free_bytes = None
    seen.append(short(trust, 1))
    trust.fleet = ready
    seen.append(short(trust, 2))

    name = frozenset({"memory_short:docker:qwen/qwen2.5:7b"})
    assert [name, name, frozenset()] == seen


def test_a_larger_context_needs_more_before_memory_is_enough():
    free = round(some_profiles().footprint_bytes(PHI.model, 4096) * 1.5)
    fleet = a_fleet(a_place_view(PHI), a_place_view(replace(PHI, server="docker:phi-long"), num_ctx=32768))

    assert frozenset({"memory_short:docker:phi-long/phi3:mini"}) == short(Trust(fleet=fleet, free_bytes=free), 0)


def test_a_leased_place_that_is_stopped_counts_as_holding():
    fleet = a_fleet(a_place_view(PHI, leases=1, state=PlaceState.STOPPED))

    assert frozenset() == short(Trust(fleet=fleet, free_bytes=1), 0)


def test_thresholds_follow_the_settings_of_the_moment():
    trust = Trust(settings=Settings(policy=PolicySettings(cpu_enter_ratio=0.3, cpu_leave_ratio=0.2, degrade_samples=1)))

    assert [True] == latches_over(trust, [(0.0, 0.35)])
