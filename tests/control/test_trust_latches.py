"""Latches: closed by what lasts, opened by calm, moved by nothing unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import (
    GIB,
    MIB,
    PolicySettings,
    Settings,
)
from dispatcher.vocabulary.signal import OTHERS_CPU, UnknownReason
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_place_view, a_reading, a_ready_view, some_profiles
from tests.control.polls import DOWN, MEMORY, Trust, some_samples


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


def test_a_look_that_was_unknown_leaves_our_mean_unknown_for_a_window():
    working, idle = a_fleet(a_ready_view(LLAMA, leases=1)), a_fleet(a_ready_view(LLAMA))
    trust = Trust(fleet=working)
    unknown = latches_over(trust, [(5.0 * i, 0.99) for i in range(6)])
    trust.fleet = idle
    within = latches_over(trust, [(30 + 5.0 * i, 0.99) for i in range(11)])
    after = latches_over(trust, [(85 + 5.0 * i, 0.99) for i in range(3)])

    assert [False] * 17 == unknown + within
    assert [False, False, True] == after


def others(trust: Trust, at: float, busy: float) -> float | None:
    snapshot = trust.poll(NOW + at, prometheus=some_samples(NOW + at, host_cpu_busy_ratio=busy))
    return snapshot.reading(OTHERS_CPU).value


def test_the_snapshot_says_what_others_use_over_the_time_of_the_hosts_own_reading():
    trust = Trust(fleet=a_fleet(a_ready_view(LLAMA, cpu_cores=a_reading(3.6, at_seconds=NOW), leases=1)))
    working = others(trust, 0, 0.95)
    trust.fleet = a_fleet(a_ready_view(LLAMA, cpu_cores=a_reading(0.0, at_seconds=NOW + 5)))
    idle = [others(trust, at, 0.5) for at in range(5, 75, 5)]

    assert pytest.approx([0.05, 0.05, 0.5]) == [working, idle[0], idle[-1]]


def test_what_others_use_is_unknown_while_our_own_share_is():
    trust = Trust(fleet=a_fleet(a_ready_view(LLAMA, leases=1)))
    reading = trust.poll(NOW, prometheus=some_samples(host_cpu_busy_ratio=0.9)).reading(OTHERS_CPU)

    assert (None, UnknownReason.EMPTY, "prometheus", NOW) == (
        reading.value,
        reading.unknown,
        reading.source,
        reading.at_seconds,
    )
