"""Contract: /select answers from memory. While every backend is stopped in its tracks, a thousand selects are answered
and not one of them connects, looks up a name, or starts a thread or a process."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import GIB, MIB, ROOT, RunningDaemon, chain, running
from tests.realparts import Process, RealPrometheus, eventually

MINE = "dispatcher.test"
SELECTS = 1000
BEFORE_IT_IS_NOTICED = 300
PROXY = """
import signal, sys
from pathlib import Path
from tests.e2e.docker_proxy import DockerProxy
DockerProxy(path=Path(sys.argv[1])).start()
signal.pause()
"""
CODING = {"task": "coding", "complexity": "complex", "prefer": "quality"}
ASKED: tuple[dict[str, Any], ...] = (  # in turn, every third one as a GET; they wait for nobody unless it is said
    {"prompt": "Summarize this in one sentence."},
    {"task": "general", "complexity": "simple", "prefer": "speed"},
    {"model": "phi3:mini"},
    {"model": "qwen2.5:7b"},
    {**CODING},
    {"requires": ["vision"]},  # refused: no model of the chain has it
    {"model": "llama3.2:3b", "dry_run": True},
    {"model": "phi3:mini", "start": False},
    {"model": "auto", "context_tokens": 6000},
    {"model": "no-such-model"},
    {"model": "qwen2.5:7b", "wait_seconds": 0.02},
)

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.needs_node_exporter, pytest.mark.needs_docker]


@pytest.fixture
def proxy(docker_engine: Any, tmp_path: Path) -> Iterator[tuple[Process, str]]:
    """A process between the daemon and Docker, because Docker itself is not the test's to stop."""
    path = tmp_path / "docker.sock"
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-c", PROXY, str(path)]
    process = Process.start(command, tmp_path / "proxy.log")
    try:
        eventually(lambda: path.exists() or None, deadline_seconds=30, what=process.tail)
        yield process, f"unix://{path}"
    finally:
        process.stop()


@pytest.fixture
def prometheus(prometheus_factory: Any, node_exporter: str) -> RealPrometheus:
    started: RealPrometheus = prometheus_factory(
        [{"job_name": "node", "static_configs": [{"targets": [node_exporter]}]}]
    )
    started.wait_for("rate(node_cpu_seconds_total[60s])")
    return started


def config(prefix: str, docker_url: str, prometheus_url: str) -> dict[str, Any]:
    return {
        "models": chain(300 * MIB, 500 * MIB, 700 * MIB),
        "telemetry": {"interval": "1s", "prometheus": {"enabled": "true", "url": prometheus_url, "timeout": "1s"}},
        "lifecycle": {
            "provider": "docker",
            "docker_url": docker_url,
            "docker_labels": {MINE: prefix},
            "reconcile_interval": "1s",
            "list_timeout": "1s",
            "start_timeout": "3s",
            "stop_grace": "2s",
            "idle": "1h",
        },
        "policy": CPU_NEVER_MATTERS,
    }


def heard(daemon: RunningDaemon) -> dict[str, Any]:
    told: dict[str, Any] = daemon.get("/-/heard").json()
    return told


def wait_for_failures(daemon: RunningDaemon, *, prometheus: bool, docker: bool) -> None:
    """Until the daemon says so of both; one that it says nothing against is in use again."""

    def said() -> bool | None:
        models, told = daemon.get("/models").json(), daemon.get("/snapshot").json()
        says = (told["source"] != "prometheus" or "prometheus" in told["failing"], models["failing"] is not None)
        return says == (prometheus, docker) or None

    eventually(said, deadline_seconds=60, what=lambda: f"{daemon.get('/snapshot').text}\n{daemon.log()}")


def ready(daemon: RunningDaemon, model: str) -> dict[str, Any]:
    """The first answer that names it: a start that failed meanwhile has its backoff to wait for."""

    def named() -> dict[str, Any] | None:
        answer = daemon.select(model=model, wait_seconds=30)
        return answer.json() if answer.status_code == 200 else None

    return eventually(named, deadline_seconds=60, what=lambda: f"{model}: {daemon.log()}")


def ask(client: httpx.Client, number: int) -> httpx.Response:
    """One select; of every two leases one is given back."""
    body = {"wait_seconds": 0, **ASKED[number % len(ASKED)]}
    if number % 3 == 0 and "requires" not in body:
        answer = client.get("/select", params={name: str(value).lower() for name, value in body.items()})
    else:
        answer = client.post("/select", json=body)
    lease = answer.json().get("lease")
    if lease is not None and number % 2:
        assert 204 == client.delete(f"/leases/{lease['id']}").status_code
    return answer


def test_a_thousand_selects_open_no_socket_while_every_backend_is_stopped(
    docker_engine, model_containers, proxy, prometheus, tmp_path
):
    proxy_process, docker_url = proxy
    phi = model_containers("phi3:mini", load_seconds=0.2)
    model_containers("llama3.2:3b", load_seconds=0.2, memory_bytes=GIB)
    model_containers("qwen2.5:7b", load_seconds=0.2, memory_bytes=GIB)
    engine = docker_engine.client.api
    whole = config(docker_engine.prefix, docker_url, prometheus.url)
    program = (str(Path(__file__).with_name("audited_daemon.py")),)
    with (
        running(tmp_path / "daemon", whole, program=program) as daemon,
        httpx.Client(base_url=daemon.url, timeout=60, trust_env=False) as client,
    ):
        assert "ready" == daemon.select(model="phi3:mini", wait_seconds=60).json()["state"], daemon.log()
        before = heard(daemon)
        proxy_process.send(signal.SIGSTOP)
        prometheus.pause()

        unnoticed = [ask(client, number) for number in range(BEFORE_IT_IS_NOTICED)]
        wait_for_failures(daemon, prometheus=True, docker=True)  # no look at phi is under way now: it stays ready
        engine.kill(phi.name, signal="SIGSTOP")
        noticed = [ask(client, number) for number in range(SELECTS)]

        after = heard(daemon)
        for answers in (unnoticed, noticed):
            statuses = Counter(answer.status_code for answer in answers)
            assert {200, 503} == set(statuses), f"{statuses} {answers[2].text} {daemon.log()}"
            assert len(answers) // 10 <= min(statuses.values()), statuses
        assert {True} == {answer.json()["degraded"] for answer in noticed}
        assert SELECTS + BEFORE_IT_IS_NOTICED == after["selects"] - before["selects"]
        assert {} == after["of_selects"], after
        assert after["of_others"]["socket.connect"] > before["of_others"]["socket.connect"], "pollers went on trying"

        daemon.get("/-/connect", **{"as": "other"})
        assert {} == heard(daemon)["of_selects"], "what is not done for a select does not count as a select's"
        daemon.get("/-/connect", **{"as": "select"})
        assert {"socket.connect": 1, "socket.__new__": 1} == heard(daemon)["of_selects"], "what is, does"

        engine.kill(phi.name, signal="SIGCONT")
        prometheus.resume()
        proxy_process.send(signal.SIGCONT)
        wait_for_failures(daemon, prometheus=False, docker=False)
        for model in ("phi3:mini", "qwen2.5:7b"):
            again = ready(daemon, model)
            assert ("ready", False) == (again["state"], again["degraded"]), daemon.log()
