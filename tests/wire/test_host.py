from __future__ import annotations

import pytest

from dispatcher.wire.host import Pressure, parse_meminfo, parse_pressure

MEMORY_PRESSURE = """\
some avg10=12.50 avg60=3.04 avg300=0.03 total=4013288
full avg10=0.00 avg60=0.50 avg300=0.00 total=1500000
"""  # Linux 6.1, /proc/pressure/memory, numbers changed


def test_pressure_is_ratios_and_seconds():
    expected = Pressure(
        some_avg10_ratio=pytest.approx(0.125),
        some_avg60_ratio=pytest.approx(0.0304),
        some_total_seconds=pytest.approx(4.013288),
        full_avg10_ratio=0.0,
        full_avg60_ratio=pytest.approx(0.005),
        full_total_seconds=pytest.approx(1.5),
    )

    assert expected == parse_pressure(MEMORY_PRESSURE)


def test_cpu_pressure_of_older_kernels_has_no_full_line():
    told = parse_pressure("some avg10=0.00 avg60=50.00 avg300=0.00 total=1\n")

    assert (0.5, None, None) == (told.some_avg60_ratio, told.full_avg60_ratio, told.full_total_seconds)


@pytest.mark.parametrize("text", ["", "some", "some avg60", "some avg60=x total=", "none avg60=1.0 total=1", "\x00\n="])
def test_what_cannot_be_read_is_unknown_and_not_zero(text):
    assert Pressure() == parse_pressure(text)


def test_meminfo_is_bytes_by_name():
    text = "MemTotal:       24684096 kB\nMemAvailable:   24266508 kB\nHugePages_Total:       3\nbroken\nOdd: x kB\n"

    assert {"MemTotal": 24684096 * 1024, "MemAvailable": 24266508 * 1024} == parse_meminfo(text)
