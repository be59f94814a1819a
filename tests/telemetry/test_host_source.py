from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from dispatcher.clock import ManualClock
from dispatcher.errors import HostUnreadable
from dispatcher.telemetry.host_source import HostSource
from dispatcher.vocabulary.signal import HOST_SIGNALS, Sample
from tests.builders import NOW

PRESSURE = "some avg10=0.00 avg60={some} avg300=0.00 total={total}\nfull avg10=1.00 avg60=9.00 avg300=0.00 total=0\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of this machine's own memory and of pressures to order."""
    (tmp_path / "pressure").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:   4000000 kB\n")
    press(tmp_path, total_seconds=100.0)
    return tmp_path


def press(proc: Path, *, total_seconds: float, some: float = 20.0) -> None:
    for resource in ("cpu", "memory"):
        (proc / "pressure" / resource).write_text(PRESSURE.format(some=some, total=round(total_seconds * 1e6)))


async def told(source: HostSource, now: float) -> dict[str, Sample]:
    return {sample.signal: sample for sample in await source.sample(now)}


async def test_the_first_look_already_knows_memory_and_cpu_of_this_machine():
    seen = await told(HostSource(), 0.0)

    memory = psutil.virtual_memory()
    assert memory.total == seen["host_memory_total_bytes"].value
    assert pytest.approx(memory.available, rel=0.2) == seen["host_memory_available_bytes"].value
    assert psutil.cpu_count() == seen["host_cpu_count"].value
    assert 0 <= seen["host_cpu_busy_ratio"].value <= 1
    assert {"host"} == {sample.source for sample in seen.values()}
    assert set() == set(seen) - set(HOST_SIGNALS)


async def test_memory_is_what_proc_says(proc):
    seen = await told(HostSource(clock=ManualClock(NOW), proc=proc), NOW)

    assert (4_000_000 * 1024, NOW) == (
        seen["host_memory_available_bytes"].value,
        seen["host_memory_available_bytes"].at_seconds,
    )


async def test_pressure_is_the_kernels_mean_until_its_own_time_was_seen_and_then_the_difference(proc):
    source = HostSource(clock=ManualClock(NOW), proc=proc)
    first = await told(source, NOW)
    press(proc, total_seconds=109.0, some=99.0)
    later = await told(source, NOW + 60)

    assert (0.2, 0.01) == (first["host_cpu_pressure_ratio"].value, first["host_memory_pressure_full_ratio"].value)
    assert pytest.approx(9 / 60) == later["host_memory_pressure_ratio"].value
    assert 0.0 == later["host_memory_pressure_full_ratio"].value


async def test_each_pressure_is_a_mean_over_its_own_time(proc):
    source = HostSource(clock=ManualClock(NOW), proc=proc)
    for at in range(0, 105, 5):
        stalled = 4.0 if at >= 80 else 0.0  # 4 s of stalls, all between the looks at 75 s and 80 s
        full = f"full avg10=0.00 avg60=0.00 avg300=0.00 total={round((1 + stalled) * 1e6)}\n"
        for resource in ("cpu", "memory"):
            some = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={round((1 + stalled) * 1e6)}\n"
            (proc / "pressure" / resource).write_text(some + full)
        seen = await told(source, NOW + at)
        means = [seen[f"host_{what}"].value for what in ("cpu_pressure_ratio", "memory_pressure_ratio")]
        if at == 80:
            assert [pytest.approx(4 / 60), pytest.approx(4 / 30)] == means
            assert pytest.approx(4 / 10) == seen["host_memory_pressure_full_ratio"].value
        if at == 90:  # 10 s later, the 10 s are calm, the others not yet
            assert [pytest.approx(4 / 60), pytest.approx(4 / 30)] == means
            assert 0.0 == seen["host_memory_pressure_full_ratio"].value

    assert 4 / 60 < 0.10 < 4 / 30  # memory's latch closes on the 30 s, and never did on the minute


async def test_the_window_moves_on(proc):
    source = HostSource(clock=ManualClock(NOW), proc=proc)
    for at in range(0, 180, 5):  # 5 s of pressure each 5 s at first, none later
        press(proc, total_seconds=100 + min(at, 60))
        seen = await told(source, NOW + at)

    assert 0.0 == seen["host_memory_pressure_ratio"].value


async def test_a_kernel_without_psi_gives_no_pressure_instead_of_zero(proc):
    for resource in ("cpu", "memory"):
        (proc / "pressure" / resource).unlink()

    seen = await told(HostSource(clock=ManualClock(NOW), proc=proc), NOW)

    assert set() == {signal for signal in seen if "pressure" in signal}
    assert "host_memory_available_bytes" in seen


async def test_a_system_without_proc_is_asked_through_psutil(tmp_path):
    seen = await told(HostSource(clock=ManualClock(NOW), proc=tmp_path / "none"), NOW)

    assert psutil.virtual_memory().total == seen["host_memory_total_bytes"].value


async def test_a_host_that_cannot_be_read_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))  # psutil's own switch: here is no /proc/stat

    with pytest.raises(HostUnreadable, match="cannot be read"):
        await HostSource(clock=ManualClock(NOW), proc=tmp_path).sample(NOW)
