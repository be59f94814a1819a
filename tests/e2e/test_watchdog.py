"""The real daemon under a service manager: what it tells on its socket, and that a reconciler that hangs is not fed."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.running import RunningDaemon, running
from tests.realparts import eventually

CONFIG = {"lifecycle": {"provider": "rehearsal", "reconcile_interval": "0.2s"}, "rehearsal": {"time_scale": 0.001}}
HANGING = """
import asyncio, sys
from pathlib import Path
from dispatcher.daemon import main
from dispatcher.lifecycle.controller import Controller

reconcile, steps = Controller.reconcile, 0

async def hanging(self):
    global steps
    steps += 1
    if steps > 3:
        await asyncio.Event().wait()
    await reconcile(self)

Controller.reconcile = hanging
raise SystemExit(main(Path(sys.argv[-1])))
"""


class Manager:
    def __init__(self, path: Path) -> None:
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(30)
        self.path = path

    def next(self) -> str:
        self.told.append(self._socket.recv(4096).decode())
        return self.told[-1]

    def until(self, word: str) -> str:
        return eventually(
            lambda: told if (told := self.next()).startswith(word) else None, deadline_seconds=60, what=word
        )

    def silent_for(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            self.next()
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@contextmanager
def managed(manager: Manager, folder: Path, *program: str) -> Iterator[RunningDaemon]:
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
    options = {"program": program} if program else {}
    with running(folder / "daemon", CONFIG, environment=environment, **options) as daemon:
        yield daemon


def test_it_is_ready_when_it_answers_is_fed_while_it_reconciles_and_says_when_it_stops(manager, tmp_path):
    with managed(manager, tmp_path) as daemon:
        ready = manager.until("READY=1")
        assert "STATUS=found: Prometheus" in ready
        assert 200 == daemon.get("/livez").status_code
        for _ in range(3):
            manager.until("WATCHDOG=1")
        assert daemon.popen is not None
        daemon.popen.send_signal(signal.SIGTERM)

        stopping = manager.until("STOPPING=1")
        assert "EXTEND_TIMEOUT_USEC=" in stopping
        assert 0 == daemon.popen.wait(30), daemon.log()


def test_a_reconciler_that_hangs_is_not_fed_though_the_daemon_answers(manager, tmp_path):
    with managed(manager, tmp_path, "-c", HANGING) as daemon:
        manager.until("READY=1")
        while not manager.silent_for(3.0):
            assert "WATCHDOG=1" == manager.told[-1]
            assert manager.told.count("WATCHDOG=1") <= 3

        assert daemon.get("/metrics").status_code == 200
