"""Alerts after their faults were really caused (test_alerts_fire.py), on a real Docker Engine: a model's container that
cannot be stopped, that hangs, that crashes, that has too little memory."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.alert_watch import Watch, Watching
from tests.e2e.running import MIB, RunningDaemon, chain, running
from tests.e2e.test_docker_loop import config
from tests.faultproxy import FaultProxy
from tests.realdocker import SOCKET, ModelContainer, ModelContainers

pytestmark = [pytest.mark.slow, pytest.mark.needs_prometheus, pytest.mark.needs_docker]

PHI = "phi3:mini"
SERVES = [sys.executable, "-m", "dispatcher", "rehearse", "--host", "0.0.0.0", "--port", "11434", "--model", PHI]
SERVES += ["--load-seconds", "0.2"]


@dataclass(frozen=True, kw_only=True)
class Watched:
    daemon: RunningDaemon
    watch: Watch

    def bring_up(self) -> None:
        answer = self.daemon.post(f"/models/{PHI}/start")
        assert 202 == answer.status_code, answer.text
        self.daemon.wait_for_state(PHI, "ready")


@contextmanager
def watched(
    watching: Watching, container: ModelContainer, folder: Path, *, need_bytes: int = 300 * MIB, **lifecycle: str
) -> Iterator[Watched]:
    """A daemon over this container alone, which it believes to need so much."""
    models = chain(need_bytes, 500 * MIB, 700 * MIB)
    settings = {**config(container.engine.prefix, **lifecycle), "models": models}
    with running(folder, settings) as daemon, watching.of(daemon) as watch:
        yield Watched(daemon=daemon, watch=watch)


def pids_of(container: ModelContainer) -> dict[int, str]:
    """pid on this host → its command line."""
    told = container.engine.client.api.top(container.name, ps_args="-eo pid,args")
    return {int(pid): command for pid, command in told["Processes"]}


def test_a_container_that_cannot_be_stopped(
    watching: Watching, model_containers: ModelContainers, tmp_path: Path
) -> None:
    container = model_containers(PHI, memory_bytes=400 * MIB)
    with FaultProxy(SOCKET, at=tmp_path / "docker.sock") as door:
        folder = tmp_path / "daemon"
        with watched(watching, container, folder, docker_url=door.url, stop_grace="1s", stop_timeout="3s") as there:
            there.bring_up()
            assert [] == there.watch.received("ModelStuck")
            door.hold(f"/containers/{container.name}/stop")
            assert 202 == there.daemon.post(f"/models/{PHI}/stop").status_code

            there.watch.wait_for("ModelStuck", model=PHI, place=f"docker:{container.name}")
            assert container.state()["Running"]
            door.heal()


def test_a_model_server_that_hangs(watching: Watching, model_containers: ModelContainers, tmp_path: Path) -> None:
    container = model_containers(PHI, memory_bytes=400 * MIB)
    with watched(watching, container, tmp_path / "daemon") as there:
        there.bring_up()
        assert [] == there.watch.received("ModelServerDown")
        server = container.state()["Pid"]
        os.kill(server, signal.SIGSTOP)
        try:
            there.watch.wait_for("ModelServerDown", place=f"docker:{container.name}")
            assert ("ready", False) == (there.daemon.states()[PHI], container.state()["Paused"])
        finally:
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGCONT)


def test_a_model_server_that_crashes(watching: Watching, model_containers: ModelContainers, tmp_path: Path) -> None:
    # A shell is the container's first process, which takes no signal it does not ask for; the server is its child.
    command = ["/bin/sh", "-c", f"{shlex.join(SERVES)} & wait $!"]
    container = model_containers(PHI, memory_bytes=400 * MIB, command=command)
    with watched(watching, container, tmp_path / "daemon") as there:
        there.bring_up()
        assert [] == there.watch.received("ModelCrashed")
        server = next(pid for pid, command in pids_of(container).items() if command.startswith(sys.executable))
        os.kill(server, signal.SIGSEGV)

        one = there.watch.wait_for("ModelCrashed")
        assert 128 + signal.SIGSEGV == container.state()["ExitCode"]
        assert [] == there.watch.received("ModelOutOfMemory")

    assert "crashed 1×" in one["annotations"]["summary"]


def test_a_model_server_that_needs_more_memory_than_it_may_have(
    watching: Watching, model_containers: ModelContainers, tmp_path: Path
) -> None:
    grows = "signal.signal(signal.SIGUSR1, lambda *_: bytearray(b'1') * (512 << 20))"
    serves = f"sys.argv = {SERVES[2:]}; runpy.run_module('dispatcher', run_name='__main__')"
    command = [sys.executable, "-c", f"import runpy, signal, sys; {grows}; {serves}"]
    container = model_containers(PHI, memory_bytes=150 * MIB, command=command)
    with watched(watching, container, tmp_path / "daemon", need_bytes=100 * MIB) as there:
        there.bring_up()
        assert [] == there.watch.received("ModelOutOfMemory")
        os.kill(container.state()["Pid"], signal.SIGUSR1)

        there.watch.wait_for("ModelOutOfMemory")
        assert container.state()["OOMKilled"]
        assert [] == there.watch.received("ModelCrashed"), "it has an alert of its own"
