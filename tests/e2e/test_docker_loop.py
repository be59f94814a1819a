"""The loop on a real Docker Engine: three stopped, labelled containers with real memory limits; the big one fits only
without the middle one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import GIB, MIB, RunningDaemon, chain, running
from tests.realparts import eventually

MINE = "dispatcher.test"
# Room is 1,200 MiB: qwen (700 × 1.10 = 770) goes beside phi (300), and not beside llama (500).
ROOM = {"capacity": 2200 * MIB, "reserve": 1000 * MIB}


def config(prefix: str, **lifecycle: Any) -> dict[str, Any]:
    return {
        "models": chain(300 * MIB, 500 * MIB, 700 * MIB),
        "telemetry": {"interval": "1s", "prometheus": {"enabled": "false", "timeout": "1s"}},
        "lifecycle": {
            "provider": "docker",
            "docker_labels": {MINE: prefix},
            "reconcile_interval": "1s",
            "dwell": "0s",
            "idle": "1h",
            "stop_grace": "2s",
            **ROOM,
            **lifecycle,
        },
        "policy": {"recover_after": "1s", "memory_leave_ratio": 1.11, **CPU_NEVER_MATTERS},
    }


class Fleet:
    """The three declared containers, and what Docker itself says was done to any container meanwhile."""

    def __init__(self, model_containers: Any, docker_engine: Any) -> None:
        self.engine = docker_engine
        self.began = f"{time.time():.6f}"
        make = model_containers
        self.phi = make("phi3:mini", memory_bytes=400 * MIB, resident_bytes=80 * MIB, load_seconds=0.5)
        self.llama = make("llama3.2:3b", memory_bytes=600 * MIB, resident_bytes=120 * MIB, load_seconds=0.5)
        self.qwen = make("qwen2.5:7b", memory_bytes=800 * MIB, resident_bytes=200 * MIB, load_seconds=1.5)

    def events(self, name: str) -> list[str]:
        """start, stop, die, … of one container since the fleet was made, from Docker's own event log."""
        told = self.engine.client.events(
            since=self.began, until=f"{time.time():.6f}", decode=True, filters={"container": name, "type": "container"}
        )
        return [event["Action"] for event in told if event["Action"] != "create"]


@pytest.fixture
def fleet(model_containers: Any, docker_engine: Any) -> Fleet:
    return Fleet(model_containers, docker_engine)


@pytest.fixture
def daemon(fleet: Fleet, tmp_path: Any) -> Iterator[RunningDaemon]:
    with running(tmp_path, config(fleet.engine.prefix)) as started:
        yield started


def ready(daemon: RunningDaemon, model: str, **more: Any) -> dict[str, Any]:
    """Has the model started and leased, and gives the lease back."""
    answer = daemon.select(model=model, wait_seconds=60, **more)
    assert answer.status_code == 200, answer.text + daemon.log()
    body = answer.json()
    assert body["state"] == "ready", body
    assert daemon.delete(f"/leases/{body['lease']['id']}").status_code == 204
    return body


def test_a_quality_minded_complex_request_evicts_the_idle_middle_one_and_the_decision_said_so(daemon, fleet):
    ready(daemon, "llama3.2:3b")
    asked = {"task": "coding", "complexity": "complex", "prefer": "quality", "wait_seconds": 60}
    said = eventually(  # its CPU is still warm from loading, and its dwell (3 × load) runs: until then it stays
        lambda: body if (body := daemon.select(**asked, dry_run=True).json())["model"] == "qwen2.5:7b" else None,
        deadline_seconds=30,
        what=lambda: daemon.select(**asked, dry_run=True).text,
    )

    done = daemon.select(**asked).json()

    place = f"docker:{fleet.llama.name}"
    chosen = next(one for one in said["candidates"] if one["verdict"] == "chosen")
    assert ("qwen2.5:7b", [place]) == (chosen["model"], chosen["evicts"])
    assert ("qwen2.5:7b", "ready") == (done["model"], done["state"])
    assert {"phi3:mini": "stopped", "llama3.2:3b": "stopped", "qwen2.5:7b": "ready"} == daemon.states()
    assert fleet.qwen.state()["Running"] and not fleet.llama.state()["Running"]


def test_a_leased_one_is_not_evicted_and_the_refusal_names_it(daemon, fleet):
    held = daemon.select(model="llama3.2:3b", lease_seconds=60, wait_seconds=60).json()

    answer = daemon.select(model="qwen2.5:7b", wait_seconds=0)

    refused = next(one for one in answer.json()["candidates"] if one["model"] == "qwen2.5:7b")
    assert (503, "memory_short") == (answer.status_code, refused["rule"])
    assert "llama3.2:3b (500 MiB) is leased until" in refused["because"]
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert fleet.llama.state()["Running"] and held["state"] == "ready"
    assert "stop" not in fleet.events(fleet.llama.name)


def test_however_many_ask_a_place_is_started_once(daemon, fleet):
    answers: list[Any] = []
    asking = [
        threading.Thread(target=lambda: answers.append(daemon.select(model="qwen2.5:7b", wait_seconds=60)))
        for _ in range(5)
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join()

    assert [(200, "ready")] * 5 == [(one.status_code, one.json()["state"]) for one in answers]
    assert 5 == len({one.json()["lease"]["id"] for one in answers})
    assert 1 == fleet.events(fleet.qwen.name).count("start")


def test_an_idle_one_stops_after_its_keep_alive(fleet, tmp_path):
    with running(tmp_path, config(fleet.engine.prefix, idle="3s")) as daemon:
        ready(daemon, "phi3:mini")
        daemon.wait_for_state("phi3:mini", "stopped")

        assert not fleet.phi.state()["Running"]
        assert "cause=idle" in daemon.log()


def test_neighbours_without_our_label_or_without_our_name_see_no_call(fleet, model_containers, tmp_path):
    stranger = model_containers("phi3:mini", labels={"dispatcher.managed": None, "dispatcher.model": None})
    namesake = model_containers(
        "llama3.2:3b", name="ollama-qwen", labels={"dispatcher.managed": None, "dispatcher.model": None}
    )
    stranger.start()
    seen_before = {one.name: fleet.events(one.name) for one in (stranger, namesake)}
    with running(tmp_path, config(fleet.engine.prefix, idle="2s")) as daemon:
        ready(daemon, "phi3:mini")
        ready(daemon, "qwen2.5:7b")
        daemon.wait_for_state("phi3:mini", "stopped")

        assert seen_before == {one.name: fleet.events(one.name) for one in (stranger, namesake)}
        assert stranger.state()["Running"] and not namesake.state()["Running"]
        assert {fleet.phi.name, fleet.llama.name, fleet.qwen.name} == {
            place["place"].removeprefix("docker:")
            for model in daemon.get("/models").json()["models"]
            for place in model["places"]
        }


def test_twenty_at_once_that_do_not_fit_together_keep_the_budget(daemon, fleet):
    models = ["phi3:mini", "llama3.2:3b", "qwen2.5:7b", "auto"]
    answers: list[Any] = []
    asking = [
        threading.Thread(
            target=lambda index=index: answers.append(daemon.select(model=models[index % 4], wait_seconds=0))
        )
        for index in range(20)
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join()

    told = [one.json() for one in answers]
    assert {200, 503} >= {one.status_code for one in answers}
    for answer, body in zip(answers, told, strict=True):
        if answer.status_code == 200:
            assert body["lease"] is not None
        else:
            assert all(one["rule"] and one["because"] for one in body["candidates"] if one["verdict"] == "rejected")
    metrics = daemon.get("/metrics").text
    reserved = metric(metrics, "dispatcher_memory_reserved_bytes")
    assert 0 < reserved <= (ROOM["capacity"] - ROOM["reserve"])
    assert 2 * GIB < metric(metrics, "dispatcher_memory_capacity_bytes")


def metric(exposition: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in exposition.splitlines() if line.startswith(name + " "))
