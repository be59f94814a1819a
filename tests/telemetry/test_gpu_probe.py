"""nvidia-smi, a real program: what it prints is read, what it does wrong is nobody's reading and never hangs a poll."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.clock import ManualClock
from dispatcher.telemetry.gpu_probe import REST_SECONDS, SIGNAL, GpuProbe
from dispatcher.telemetry.host_source import HostSource
from dispatcher.vocabulary.settings import MIB
from dispatcher.vocabulary.signal import Sample
from tests.builders import NOW
from tests.telemetry.sick_servers import becomes_true


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """nvidia_smi(script) puts one on the PATH, before everything else."""

    def put(script: str) -> Path:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return put


async def told(probe: GpuProbe, now: float = NOW) -> Sample | None:
    probe.newest(now)
    await probe.settled()
    return probe.newest(now)


async def test_the_free_memory_of_all_gpus_is_summed(nvidia_smi):
    nvidia_smi(
        'test "$*" = "--query-gpu=memory.free,memory.total --format=csv,noheader,nounits" || exit 9\n'
        'echo "20000, 24564"; echo "1000, 8192"'
    )
    probe = GpuProbe("host")

    seen = await told(probe)
    await probe.settled()

    assert Sample(signal=SIGNAL, value=21000.0 * MIB, at_seconds=NOW, source="host") == seen


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('echo "[N/A], [N/A]"', id="cannot say"),
        pytest.param('echo "20000, 24564"; echo "[N/A], 8192"', id="one of two cannot say"),
        pytest.param('echo "30000, 24564"', id="more than there is"),
        pytest.param('echo "-5, 24564"', id="negative"),
        pytest.param('echo "nan, inf"', id="no numbers"),
        pytest.param("true", id="says nothing"),
        pytest.param('echo "20000, 24564"; exit 9', id="fails"),
        pytest.param(
            'echo "NVIDIA-SMI has failed because it could not communicate with the driver"; exit 9', id="driver"
        ),
        pytest.param("exec yes", id="prints without end"),
    ],
)
async def test_what_is_no_reading_is_none(nvidia_smi, script):
    nvidia_smi(script)

    assert await told(GpuProbe("host")) is None


async def test_a_program_that_cannot_be_run_is_none(tmp_path):
    (tmp_path / "nvidia-smi").write_text("no program")

    assert await told(GpuProbe("host", find=lambda: str(tmp_path / "nvidia-smi"))) is None


async def test_a_hung_program_is_killed_at_its_deadline_and_left_alone_for_a_while(nvidia_smi, tmp_path):
    pid = tmp_path / "pid"
    nvidia_smi(f"echo $$ >> {pid}; exec sleep 600")
    probe = GpuProbe("host", deadline_seconds=1.0)

    assert await told(probe) is None
    first = int(pid.read_text())
    await becomes_true(lambda: not Path(f"/proc/{first}").exists())
    assert await told(probe, NOW + REST_SECONDS - 1) is None
    assert [str(first)] == pid.read_text().split()

    nvidia_smi('echo "5, 10"')
    again = await told(probe, NOW + REST_SECONDS)
    await probe.close()
    assert again is not None


class Uninterruptible(subprocess.Popen):
    """As in state D: signals are sent to it, and do not arrive."""

    def send_signal(self, sig):
        """Not yet."""

    def arrive(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def sleepers() -> Iterator[list[Uninterruptible]]:
    found: list[Uninterruptible] = []
    yield found
    for one in found:
        if one.returncode is None:
            one.arrive()


async def test_a_program_that_no_signal_ends_is_left_behind_counted_and_has_no_second_beside_it(sleepers):
    def start(program: str) -> Uninterruptible:
        sleepers.append(Uninterruptible([program, "600"], stdout=subprocess.PIPE))
        return sleepers[-1]

    probe = GpuProbe("host", find=lambda: shutil.which("sleep"), start=start, deadline_seconds=0.1)
    assert await told(probe) is None

    for polls in range(5):
        probe.newest(NOW + polls * 2 * REST_SECONDS)
        await probe.settled()
    assert (1, 1) == (len(sleepers), probe.abandoned_threads)
    await probe.close()  # and holds nobody up

    sleepers[0].arrive()
    await becomes_true(lambda: probe.abandoned_threads == 0)
    await told(probe, NOW + 20 * REST_SECONDS)
    assert 2 == len(sleepers)


async def test_a_program_on_a_file_system_that_hangs_holds_up_nobody():
    hangs = threading.Event()

    def find() -> str | None:
        hangs.wait(30)
        return None

    probe = GpuProbe("host", find=find, deadline_seconds=0.1)
    assert await told(probe) is None

    assert 1 == probe.abandoned_threads
    hangs.set()
    await becomes_true(lambda: probe.abandoned_threads == 0)


async def test_a_program_whose_child_keeps_its_output_open_is_not_waited_for(nvidia_smi):
    nvidia_smi('sleep 5 & echo "5, 10"')
    probe = GpuProbe("host", deadline_seconds=0.5)

    assert await told(probe) is None
    await becomes_true(lambda: probe.abandoned_threads == 0)


async def test_closing_ends_a_look_under_way_and_its_program(nvidia_smi, tmp_path):
    pid = tmp_path / "pid"
    nvidia_smi(f"echo $$ > {pid}; exec sleep 600")
    probe = GpuProbe("host", deadline_seconds=600.0)
    probe.newest(NOW)
    await becomes_true(lambda: pid.exists() and pid.read_text().strip())

    await probe.close()

    assert not Path(f"/proc/{int(pid.read_text())}").exists()


async def test_a_host_poll_waits_for_no_gpu_and_tells_what_the_last_look_saw(nvidia_smi):
    nvidia_smi('echo "5, 10"')
    probe = GpuProbe("host")
    source = HostSource(clock=ManualClock(NOW), gpu=probe)

    first = {sample.signal: sample.value for sample in await source.sample(NOW)}
    await probe.settled()
    second = {sample.signal: sample.value for sample in await source.sample(NOW + 5)}
    await source.close()

    assert (set(second) - set(first) or {SIGNAL}, 5.0 * MIB) == ({SIGNAL}, second[SIGNAL])


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
async def test_without_the_program_nothing_is_said():
    source = HostSource(clock=ManualClock(NOW), gpu=GpuProbe("host"))

    await source.sample(NOW)

    assert SIGNAL not in {sample.signal for sample in await source.sample(NOW + 5)}
