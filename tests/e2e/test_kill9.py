"""kill -9 at seeded moments, a fifth of them and more within a start or stop call; then a restart on the same state."""

from __future__ import annotations

import random
import sqlite3
import threading
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest

from tests.e2e.docker_proxy import DockerProxy
from tests.e2e.running import RunningDaemon
from tests.e2e.test_docker_loop import Fleet, config
from tests.realparts import eventually

FIRST = 10  # the rest of the fifty is opt-in: scripts/test -m chaos tests/e2e/test_kill9.py
ALL = 50


@pytest.fixture
def fleet(model_containers: Any, docker_engine: Any) -> Fleet:
    return Fleet(model_containers, docker_engine)


@pytest.mark.timeout(600)  # a minute when the machine is idle
def test_ten_kills_leave_nothing_orphaned_nothing_started_twice_and_every_lease_honoured(fleet, tmp_path):
    assert kills(fleet, tmp_path, range(FIRST)) >= FIRST // 5


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_fifty_kills_leave_nothing_orphaned_nothing_started_twice_and_every_lease_honoured(fleet, tmp_path):
    assert kills(fleet, tmp_path, range(ALL)) >= ALL // 5


def kills(fleet: Fleet, folder: Any, seeds: range) -> int:
    """How many of the kills fell into a start or stop call."""
    proxy = DockerProxy(folder / "docker.sock").start()
    settings = config(fleet.engine.prefix, docker_url=proxy.url, idle="1h", reconcile_interval="0.5s")
    daemon = RunningDaemon(folder=folder / "daemon", config=settings)
    within = 0
    try:
        for seed in seeds:
            within += one_kill(fleet, daemon, proxy, seed)
    finally:
        daemon.stop()
        proxy.close()
    print(f"{within} of {len(seeds)} kills fell within a start or stop call")
    return within


def one_kill(fleet: Fleet, daemon: RunningDaemon, proxy: DockerProxy, seed: int) -> bool:
    chance = random.Random(seed)
    prepare(fleet, daemon)
    held = daemon.select(model="phi3:mini", wait_seconds=60, lease_seconds=300).json()
    starts_before = {one.name: fleet.events(one.name).count("start") for one in (fleet.phi, fleet.llama, fleet.qwen)}

    answers: list[dict[str, Any]] = []
    proxy.begun.clear()
    asking = threading.Thread(target=ask_for_the_big_one, args=(daemon, answers))
    asking.start()
    if seed % 2 == 0:  # as soon as a call to Docker has been sent, and a little later
        assert proxy.begun.wait(30), daemon.log()
        threading.Event().wait(chance.uniform(0.0, 0.1))
    else:  # at any moment from the first byte to well after ready
        threading.Event().wait(chance.uniform(0.0, 4.0))
    within = bool(proxy.under_way)
    daemon.kill()
    proxy.under_way.clear()
    asking.join()

    daemon.start()
    settle(fleet, daemon, seed)

    for one in (fleet.phi, fleet.llama, fleet.qwen):
        began = fleet.events(one.name).count("start") - starts_before[one.name]
        assert began <= 1, f"seed {seed}: {one.name} was started {began} times\n{daemon.log()}"
    for lease in [held["lease"], *(answer["lease"] for answer in answers if answer.get("lease"))]:
        told = daemon.get(f"/leases/{lease['id']}")
        assert (200, "ready") == (told.status_code, told.json().get("state")), (
            f"seed {seed}: {told.text}\n{daemon.log()}"
        )
        daemon.delete(f"/leases/{lease['id']}")
    assert fleet.phi.state()["Running"]
    return within


def prepare(fleet: Fleet, daemon: RunningDaemon) -> None:
    """phi and llama ready, qwen stopped, nobody's lease: the next request for qwen evicts llama."""
    if daemon.popen is None or daemon.popen.poll() is not None:
        daemon.start()
    for (lease_id,) in recorded_leases(daemon):  # of requests whose answer was lost with the daemon
        daemon.delete(f"/leases/{lease_id}")
    if daemon.states()["qwen2.5:7b"] == "ready":
        daemon.post("/models/qwen2.5%3A7b/stop")
        daemon.wait_for_state("qwen2.5:7b", "stopped")
    for model in ("phi3:mini", "llama3.2:3b"):
        answer = daemon.select(model=model, wait_seconds=60)
        assert answer.status_code == 200, answer.text + daemon.log()
        daemon.delete(f"/leases/{answer.json()['lease']['id']}")
    eventually(
        lambda: evictable(daemon) or None,
        deadline_seconds=30,
        what=lambda: f"llama3.2:3b to become evictable: {daemon.get('/models').text}",
    )


def recorded_leases(daemon: RunningDaemon) -> list[tuple[str]]:
    with closing(sqlite3.connect(f"file:{daemon.folder / 'history.sqlite'}?mode=ro", uri=True)) as history:
        return history.execute("SELECT id FROM lease").fetchall()


def evictable(daemon: RunningDaemon) -> bool:
    said = daemon.select(model="qwen2.5:7b", dry_run=True)
    return said.status_code == 200 and bool(said.json()["candidates"][0]["evicts"])


def ask_for_the_big_one(daemon: RunningDaemon, answers: list[dict[str, Any]]) -> None:
    with suppress(httpx.HTTPError, ValueError):  # the daemon is killed under it
        answer = daemon.select(model="qwen2.5:7b", wait_seconds=60, lease_seconds=300)
        if answer.status_code == 200:
            answers.append(answer.json())


def settle(fleet: Fleet, daemon: RunningDaemon, seed: int) -> None:
    """Until what is and what should be agree: every place ready and running, or stopped and not running."""
    containers = {"phi3:mini": fleet.phi, "llama3.2:3b": fleet.llama, "qwen2.5:7b": fleet.qwen}

    def agrees() -> bool | None:
        states = daemon.states()
        runs = {model: container.state()["Running"] for model, container in containers.items()}
        return states == {model: "ready" if up else "stopped" for model, up in runs.items()} or None

    eventually(agrees, deadline_seconds=60, what=lambda: f"seed {seed} to settle: {daemon.states()}\n{daemon.log()}")
