from __future__ import annotations

import pytest

from dispatcher.control.trust import TrustState, fresh_seconds, scrape_interval_seconds
from dispatcher.vocabulary.settings import (
    GIB,
    PrometheusSettings,
    Settings,
    TelemetrySettings,
)
from dispatcher.vocabulary.signal import SIGNALS, Freshness, Sample, UnknownReason
from tests.builders import NOW, a_fleet
from tests.control.polls import ALL_SAMPLES, DOWN, MEMORY, Trust, some_samples

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


def test_the_scrape_interval_is_the_usual_gap_of_distinct_sample_times():
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


def test_outages_that_come_again_and_again_do_not_become_the_scrape_interval():
    trust = Trust()
    for at in (0, 15, 215, 415, 430, 630, 830, 845):  # three scrapes in seven gaps, an outage for each of the others
        trust.poll(NOW + at, prometheus=some_samples(NOW + at))

    assert 15 == scrape_interval_seconds(trust.state)


def test_snapshots_are_numbered():
    trust = Trust()

    assert [1, 2, 3] == [trust.poll(NOW + at).number for at in range(3)]


def test_a_host_signal_older_than_fresh_is_named_stale_and_the_others_are_not():
    trust = Trust()
    fresh = trust.poll(NOW, prometheus=some_samples())
    later = [one for one in some_samples(NOW + 60) if one.signal != "host_cpu_busy_ratio"]
    snapshot = trust.poll(NOW + 60, prometheus=later)

    assert frozenset() == fresh.stale
    assert ({"host_cpu_busy_ratio"}, Freshness.FRESH) == (snapshot.stale, snapshot.freshness)


def test_a_server_of_another_clock_fails_and_the_host_speaks_at_once():
    trust = Trust()
    trust.poll(NOW, prometheus=some_samples(), host=some_samples(source="host"))
    other = dict.fromkeys(ALL_SAMPLES, UnknownReason.CLOCK_SKEW)

    skewed = trust.poll(NOW + 5, prometheus=some_samples(NOW + 5, **other), host=some_samples(NOW + 5, source="host"))
    back = trust.poll(NOW + 10, prometheus=some_samples(NOW + 10), host=some_samples(NOW + 10, source="host"))

    assert ({"prometheus": UnknownReason.CLOCK_SKEW}, "host", Freshness.FRESH) == (
        skewed.failing,
        skewed.source,
        skewed.freshness,
    )
    assert ({}, "prometheus") == (back.failing, back.source)


def test_a_server_of_another_clock_and_nobody_else_is_blind_and_says_why():
    other = dict.fromkeys(ALL_SAMPLES, UnknownReason.CLOCK_SKEW)

    snapshot = Trust().poll(NOW, prometheus=some_samples(**other))

    assert (Freshness.BLIND, UnknownReason.CLOCK_SKEW) == (snapshot.freshness, snapshot.reading(MEMORY).unknown)


def test_a_gpu_that_is_not_there_is_not_spoken_of_and_one_that_contradicts_itself_is():
    gpu = "gpu_memory_free_bytes"
    for why in (UnknownReason.EMPTY, UnknownReason.PROM_ERROR):
        snapshot = Trust().poll(NOW, prometheus=some_samples(**{gpu: why}))
        assert (gpu, "") not in snapshot.readings and {} == snapshot.failing

    known = Trust().poll(NOW, prometheus=some_samples(**{gpu: UnknownReason.EMPTY}), host=some_samples(**{gpu: 4e9}))
    two_hosts = Trust().poll(NOW, prometheus=some_samples(**{gpu: UnknownReason.MULTI_SERIES}))
    assert (4e9, UnknownReason.MULTI_SERIES) == (known.reading(gpu).value, two_hosts.reading(gpu).unknown)


def test_a_gpu_that_was_there_is_stale_and_not_forgotten():
    gpu, trust = "gpu_memory_free_bytes", Trust()
    trust.poll(NOW, prometheus=some_samples(**{gpu: 4e9}))

    assert 4e9 == trust.poll(NOW + 60, failures=DOWN).reading(gpu).value
    assert trust.poll(NOW + 301, failures=DOWN).reading(gpu).value is None
