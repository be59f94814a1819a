"""SIGTERM, once and twice, while requests wait: what is open finishes, or is told how far it has come; no 500s."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
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
