"""One place's record: how long it stays, and how busy it is."""

from __future__ import annotations

import pytest

from dispatcher.lifecycle.resident import Resident, cpu_cores, dwell_seconds, looked_at
from tests.builders import NOW, a_seen


@pytest.mark.parametrize(
    ("turns", "load_seconds", "expected"),
    [
        pytest.param(1, 4.0, 30.0, id="the least"),
        pytest.param(1, 20.0, 60.0, id="three times the load"),
        pytest.param(3, 4.0, 30.0, id="three turns in ten minutes are normal"),
        pytest.param(4, 4.0, 60.0, id="more double it"),
        pytest.param(6, 4.0, 240.0, id="and double it"),
        pytest.param(16, 20.0, 1800.0, id="to half an hour"),
    ],
)
def test_flapping_doubles_the_dwell(turns, load_seconds, expected):
    assert expected == dwell_seconds((NOW,) * turns, NOW + 1, 30.0, load_seconds)


def test_old_turns_are_forgotten():
    assert 30.0 == dwell_seconds((NOW,) * 9, NOW + 600, 30.0, 4.0)


RUN = {"running": True, "started_at_seconds": NOW}
CPU = {
    "two cores": ((0.0, NOW, NOW), (10.0, NOW + 5, NOW), 2.0),
    "none": ((10.0, NOW, NOW), (10.0, NOW + 5, NOW), 0.0),
    "another run": ((10.0, NOW, NOW), (1.0, NOW + 5, NOW + 1), None),
    "not said before": ((None, NOW, NOW), (1.0, NOW + 5, NOW), None),
    "not said now": ((1.0, NOW, NOW), (None, NOW + 5, NOW), None),
    "the same moment": ((1.0, NOW, NOW), (1.0, NOW, NOW), None),
}


@pytest.mark.parametrize(("before", "after", "expected"), CPU.values(), ids=CPU.keys())
def test_cpu_is_the_difference_of_two_looks_at_the_same_run(before, after, expected):
    first, second = (
        a_seen(running=True, cpu_seconds_total=total, cpu_at_seconds=at, started_at_seconds=started)
        for total, at, started in (before, after)
    )

    assert expected == cpu_cores(first, second)


def test_a_stopped_place_has_no_cpu():
    busy = a_seen(cpu_seconds_total=10.0, cpu_at_seconds=NOW + 5, **RUN)
    resident = looked_at(Resident(seen=a_seen(cpu_seconds_total=0.0, cpu_at_seconds=NOW, **RUN)), busy, NOW + 5)

    assert 2.0 == resident.cpu.value
    assert None is looked_at(resident, a_seen(), NOW + 10).cpu.value


def test_a_reading_by_a_clock_that_is_ahead_is_no_newer_than_now_and_gives_way_to_the_next():
    """Else Prometheus, which keeps better time, would not be believed for as long as the clock was ahead."""
    ahead = NOW + 3600
    resident = looked_at(
        Resident(seen=a_seen(cpu_seconds_total=0.0, cpu_at_seconds=ahead - 5, **RUN)),
        a_seen(cpu_seconds_total=0.0, cpu_at_seconds=ahead, **RUN),
        NOW,
    )
    assert (0.0, NOW) == (resident.cpu.value, resident.cpu.at_seconds)

    set_back = looked_at(resident, a_seen(cpu_seconds_total=10.0, cpu_at_seconds=NOW - 1795, **RUN), NOW - 1795)
    assert NOW - 1795 == set_back.cpu.at_seconds
    again = looked_at(set_back, a_seen(cpu_seconds_total=20.0, cpu_at_seconds=NOW - 1790, **RUN), NOW - 1790)
    assert (2.0, NOW - 1790) == (again.cpu.value, again.cpu.at_seconds)
