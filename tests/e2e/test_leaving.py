"""SIGTERM, once and twice, while requests wait: what is open finishes, or is told how far it has come; no 500s."""

from __future__ import annotations

import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.running import RunningDaemon, running
from tests.realparts import eventually

SLOW = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 1.0}}  # qwen loads for about six seconds


@pytest.fixture
def daemon(tmp_path):
    with running(tmp_path, SLOW) as started:
        yield started


def waiting(daemon: RunningDaemon, count: int) -> tuple[list[threading.Thread], list[httpx.Response]]:
    answers: list[httpx.Response] = []

    def ask() -> None:
        with suppress(httpx.HTTPError):
            answers.append(daemon.select(model="qwen2.5:7b", wait_seconds=60))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for one in threads:
        one.start()
    eventually(
        lambda: daemon.states().get("qwen2.5:7b") == "starting" or None, deadline_seconds=30, what="qwen to be starting"
    )
    return threads, answers


def leases_of(daemon: RunningDaemon) -> int:
    told = daemon.get("/models").json()["models"]
    return sum(place["leases"] for model in told for place in model["places"])


def test_while_it_drains_the_new_are_told_when_to_come_back_and_the_open_are_answered(daemon):
    threads, answers = waiting(daemon, 2)
    eventually(lambda: leases_of(daemon) == 2 or None, deadline_seconds=10, what="both to be leased")
    assert daemon.popen is not None
    daemon.popen.send_signal(signal.SIGTERM)

    refused = eventually(
        lambda: answer if (answer := daemon.select(wait_seconds=0)).status_code == 503 else None,
        deadline_seconds=5,
        what="a new request to be refused",
    )
    ready = daemon.get("/readyz")
    for one in threads:
        one.join()

    assert ("2", 503) == (refused.headers["retry-after"], ready.status_code)
    assert [(200, "ready")] * 2 == [(one.status_code, one.json()["state"]) for one in answers]
    assert 0 == daemon.popen.wait(20), daemon.log()


def test_told_twice_it_leaves_at_once_and_says_what_was_promised(daemon):
    threads, answers = waiting(daemon, 3)
    eventually(lambda: leases_of(daemon) == 3 or None, deadline_seconds=10, what="all to be leased")
    assert daemon.popen is not None
    for _ in range(2):
        daemon.popen.send_signal(signal.SIGTERM)
        threading.Event().wait(0.2)
    for one in threads:
        one.join()

    told: list[Any] = [(one.status_code, one.json()["state"], one.json()["lease"] is not None) for one in answers]
    assert [(200, "starting", True)] * 3 == told, daemon.log()
    assert 0 == daemon.popen.wait(20), daemon.log()
    assert "Traceback" not in daemon.log()


# ── attacks on the way out ──────────────────────────────────────────────────────────────────────────────────────────

QUICK = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 0.001}}


@contextmanager
def silent_engine(path: Path) -> Iterator[str]:
    """A Docker that is there and says nothing: connections are taken, and never answered (as after a SIGSTOP)."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(64)
        yield f"unix://{path}"


def signalled(daemon: RunningDaemon, *numbers: signal.Signals) -> int:
    assert daemon.popen is not None
    for number in numbers:
        daemon.popen.send_signal(number)
    return daemon.popen.wait(60)


def decisions_on_disk(daemon: RunningDaemon) -> set[str]:
    with closing(sqlite3.connect(f"file:{daemon.folder / 'history.sqlite'}?mode=ro", uri=True)) as history:
        return {one for (one,) in history.execute("SELECT decision_id FROM event WHERE kind = 'decided'")}


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([signal.SIGTERM], id="SIGTERM"),
        pytest.param([signal.SIGINT], id="SIGINT"),
        pytest.param([signal.SIGTERM] * 2, id="SIGTERM twice"),
        pytest.param([signal.SIGINT, signal.SIGTERM] * 20, id="a storm of them"),
    ],
)
def test_however_it_is_told_it_ends_with_0_and_every_decision_is_written(numbers, tmp_path):
    with running(tmp_path, QUICK) as daemon:
        answered = {daemon.select(dry_run=True).json()["decision_id"] for _ in range(50)}

        assert 0 == signalled(daemon, *numbers), daemon.log()
        assert set() == answered - decisions_on_disk(daemon)
        assert "Traceback" not in daemon.log()


def test_told_again_and_again_until_it_is_gone_it_still_ends_with_0(tmp_path):
    with running(tmp_path, QUICK) as daemon:
        assert daemon.popen is not None
        while daemon.popen.poll() is None:
            daemon.popen.send_signal(signal.SIGTERM)
            threading.Event().wait(0.001)

        assert 0 == daemon.popen.returncode, daemon.log()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_told_while_it_still_looks_for_an_engine_that_hangs_it_ends_with_0(told, tmp_path):
    with silent_engine(tmp_path / "docker.sock") as url:
        daemon = RunningDaemon(
            folder=tmp_path / "daemon", config={"lifecycle": {"provider": "docker", "docker_url": url}}
        )
        daemon.start(wait=False)
        try:
            eventually(
                lambda: (tmp_path / "daemon" / "history.sqlite-wal").exists() or None,
                deadline_seconds=30,
                what=daemon.log,
            )
            assert 0 == signalled(daemon, told), daemon.log()
            assert "Traceback" not in daemon.log()
        finally:
            daemon.stop()


def test_told_before_it_has_read_its_configuration_it_ends_with_0_or_by_the_signal(tmp_path):
    """Python's own start comes first, and it knows nothing of us."""
    for delay_seconds in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0):
        daemon = RunningDaemon(folder=tmp_path / str(delay_seconds), config=QUICK).start(wait=False)
        threading.Event().wait(delay_seconds)

        assert signalled(daemon, signal.SIGTERM) in (0, -signal.SIGTERM), daemon.log()
        assert "Traceback" not in daemon.log()


@pytest.mark.needs_prometheus
def test_a_docker_and_a_prometheus_that_hang_do_not_hold_it(prometheus_factory, tmp_path):
    prometheus = prometheus_factory()
    with silent_engine(tmp_path / "docker.sock") as url:
        config = {
            "lifecycle": {"provider": "docker", "docker_url": url},
            "telemetry": {"prometheus": {"url": prometheus.url}},
        }
        with running(tmp_path / "daemon", config) as daemon:
            prometheus.pause()
            eventually(
                lambda: "before=answering after=prom_unreachable" in daemon.log() or None,
                deadline_seconds=60,
                what=daemon.log,
            )

            assert 0 == signalled(daemon, signal.SIGTERM), daemon.log()
            assert "Traceback" not in daemon.log()


def test_a_request_that_never_comes_to_its_end_holds_it_only_until_it_is_told_twice(tmp_path):
    with running(tmp_path, QUICK) as daemon, socket.create_connection(("127.0.0.1", daemon.port)) as slow:
        slow.sendall(b"POST /select HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        idle = socket.create_connection(("127.0.0.1", daemon.port))
        assert 200 == daemon.get("/livez").status_code
        assert daemon.popen is not None
        daemon.popen.send_signal(signal.SIGTERM)
        eventually(lambda: daemon.get("/readyz").status_code == 503 or None, deadline_seconds=10, what="it to drain")
        assert daemon.popen.poll() is None

        daemon.popen.send_signal(signal.SIGTERM)
        slow.settimeout(60)
        told = slow.recv(65536)
        assert told.startswith(b"HTTP/1.1 503 "), told
        assert b"retry-after: 2" in told.lower()
        assert 0 == daemon.popen.wait(60), daemon.log()
        assert "Traceback" not in daemon.log()
        idle.close()


def test_outcomes_are_taken_while_it_drains(daemon):
    before = daemon.select(model="phi3:mini", wait_seconds=60).json()
    threads, answers = waiting(daemon, 1)
    assert daemon.popen is not None
    daemon.popen.send_signal(signal.SIGTERM)
    eventually(lambda: daemon.get("/readyz").status_code == 503 or None, deadline_seconds=10, what="it to drain")

    told = daemon.post("/outcomes", decision_id=before["decision_id"], status="ok", duration_seconds=1.0)
    for one in threads:
        one.join()

    assert 204 == told.status_code
    assert 0 == daemon.popen.wait(30), daemon.log()
    assert 200 == answers[0].status_code
