"""`scripts/bench faults`: what a /select costs its caller while everything it rests on hangs.

Blocks alternate, healthy, hung, healthy, hung, healthy …, so that what else the machine does cancels out: each hung one
is compared with its two neighbours. Hung is: connections are accepted and nothing comes through.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import click
import docker.errors

from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import MIB, ROOT, RunningDaemon
from tests.faultproxy import FaultProxy
from tests.realdocker import IMAGE, SOCKET, DockerEngine, ModelContainers, _build_context, _connect, static_busybox
from tests.realparts import Process, PrometheusFactory, eventually, pick_port

MODEL = "phi3:mini"
CLIENTS = 2  # at once, each with a connection kept alive
AIM_RATIO = 1.2
WARM_SECONDS = 2.0
SELECT_BODY = json.dumps({"prompt": "Summarise the ticket below. " * 8, "wait_seconds": 0, "lease_seconds": 1}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """doors: by who is behind them."""

    daemon: RunningDaemon
    doors: dict[str, FaultProxy]

    def heal(self) -> None:
        for door in self.doors.values():
            door.heal()
        eventually(self._is_well, deadline_seconds=60, what=lambda: f"all to be well again: {self.daemon.log()}")

    def _is_well(self) -> bool | None:
        told, models = self.daemon.get("/snapshot").json(), self.daemon.get("/models").json()
        answer = self.daemon.select(wait_seconds=0, dry_run=True)
        ready = answer.status_code == 200 and answer.json()["state"] == "ready"
        return (told["freshness"] == "fresh" and not told["failing"] and not models["failing"] and ready) or None


@dataclass(slots=True, kw_only=True)
class Block:
    seconds: list[float] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)

    def at(self, ratio: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(len(self.seconds) * ratio))]

    def __str__(self) -> str:
        answers = ", ".join(f"{status}: {count}" for status, count in sorted(self.answers.items()))
        return f"p50 {self.at(0.5) * 1e3:6.2f} ms   p99 {self.at(0.99) * 1e3:6.2f} ms   ({answers})"


@click.command()
@click.option("--rounds", default=4, show_default=True, help="Hung blocks of each kind.")
@click.option("--block-seconds", default=4.0, show_default=True, help="Length of a block.")
def faults(rounds: int, block_seconds: float) -> None:
    """p99 of /select with every dependency hung, against the healthy blocks before and after it."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = stack.enter_context(_bench(Path(folder)))
        everything = tuple(bench.doors)
        kinds = {"all but the model server": everything[:-1], "everything": everything}
        ratios: dict[str, list[float]] = {name: [] for name in kinds}
        bench.heal()
        _block(bench.daemon.port, WARM_SECONDS)
        before = _healthy(bench, block_seconds)
        for _ in range(rounds):
            for name, hung in kinds.items():
                for door in hung:
                    bench.doors[door].hang()
                measured = _block(bench.daemon.port, block_seconds)
                click.echo(f"{name + ' hangs':<34}{measured}")
                bench.heal()
                after = _healthy(bench, block_seconds)
                ratios[name].append(measured.at(0.99) / statistics.mean((before.at(0.99), after.at(0.99))))
                before = after
    click.echo(f"dependencies: {', '.join(everything)}")
    for name, seen in ratios.items():
        middle = statistics.median(seen)
        verdict = "met" if middle <= AIM_RATIO else "NOT met"
        click.echo(
            f"p99 of /select, {name} hung / healthy: min {min(seen):.2f}   median {middle:.2f}   max {max(seen):.2f}   "
            f"aim <= {AIM_RATIO}: {verdict}"
        )
    click.echo(f"again: scripts/bench faults --rounds {rounds} --block-seconds {block_seconds:g}")


def _healthy(bench: Bench, block_seconds: float) -> Block:
    block = _block(bench.daemon.port, block_seconds)
    click.echo(f"{'healthy':<34}{block}")
    return block


def _block(port: int, seconds: float) -> Block:
    block, until = Block(), time.perf_counter() + seconds
    clients = [threading.Thread(target=_ask, args=(port, until, block)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return block


def _ask(port: int, until: float, block: Block) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    while (began := time.perf_counter()) < until:
        connection.request("POST", "/select", SELECT_BODY, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        block.seconds.append(time.perf_counter() - began)
        block.answers[answer.status] += 1
        time.sleep(0.001)  # a busy workflow host, and not a race for the CPU: a queue's p99 is that of the queue
    connection.close()


# ── what it rests on ─────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _bench(folder: Path) -> Iterator[Bench]:
    """The model server last: while it hangs there is nobody to name."""
    with ExitStack() as stack:
        prometheus = FaultProxy(stack.enter_context(_prometheus(folder)))
        doors = {"Prometheus": stack.enter_context(prometheus)}
        client = _connect()
        if client is None:
            click.echo(f"Docker does not answer at {SOCKET}: the model is a plain server, and nothing of Docker hangs")
            model = doors["model server"] = stack.enter_context(FaultProxy(stack.enter_context(_model_server(folder))))
            lifecycle: dict[str, Any] = {"provider": "ollama", "ollama_url": model.url}
        else:
            engine = DockerEngine(
                client=client, prefix=f"dispatcher-test-{os.getpid()}-{uuid.uuid4().hex[:6]}", ours=False
            )
            doors["Docker"] = stack.enter_context(FaultProxy(SOCKET, at=folder / "docker.sock"))
            model = doors["model server"] = stack.enter_context(FaultProxy())
            model.target = stack.enter_context(_model_container(engine, model.url))
            lifecycle = {"provider": "docker", "docker_url": doors["Docker"].url, "docker_labels": engine.mine}
        daemon = RunningDaemon(folder=folder / "daemon", config=_config(prometheus.url, lifecycle))
        stack.callback(daemon.stop)
        daemon.start()
        answer = daemon.select(wait_seconds=60)
        if answer.status_code != 200:
            raise click.ClickException(f"no model became ready: {answer.text}\n{daemon.log()}")
        yield Bench(daemon=daemon, doors=doors)


def _config(prometheus_url: str, lifecycle: dict[str, Any]) -> dict[str, Any]:
    """Looks often, so that a block sees the whole of a fault: noticed, and gone on without."""
    return {
        "models": [{"name": MODEL, "footprint": 300 * MIB}],
        "telemetry": {"interval": "1s", "prometheus": {"enabled": "true", "url": prometheus_url, "timeout": "1s"}},
        "lifecycle": {"reconcile_interval": "1s", "list_timeout": "1s", "idle": "1h", **lifecycle},
        "policy": CPU_NEVER_MATTERS,
    }


@contextmanager
def _prometheus(folder: Path) -> Iterator[str]:
    exporter = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
    if exporter is None or shutil.which("prometheus") is None:
        raise click.ClickException("this needs prometheus and prometheus-node-exporter (scripts/test installs them)")
    address = f"127.0.0.1:{pick_port()}"
    factory = PrometheusFactory(folder=folder)
    process = Process.start([exporter, f"--web.listen-address={address}"], folder / "node_exporter.log")
    try:
        yield factory([{"job_name": "node", "static_configs": [{"targets": [address]}]}]).url
    finally:
        for started in (*(one.process for one in factory.started), process):
            started.stop()


@contextmanager
def _model_server(folder: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{(port := pick_port())}"
    process = Process.start(_command(port), folder / "model_server.log")
    try:
        process.wait_for_http(f"{url}/api/version")
        yield url
    finally:
        process.stop()


def _command(port: int) -> Sequence[str]:
    rehearse = ["-m", "dispatcher", "rehearse", "--port", str(port), "--model", MODEL, "--load-seconds", "0.1"]
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, *rehearse]


@contextmanager
def _model_container(engine: DockerEngine, endpoint: str) -> Iterator[str]:
    """endpoint: where the daemon is told that it answers."""
    try:
        engine.client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        if (busybox := static_busybox()) is None:
            raise click.ClickException("this needs a static busybox (Debian package: busybox-static)") from None
        engine.client.images.build(fileobj=_build_context(busybox), custom_context=True, tag=IMAGE, rm=True)
    make = ModelContainers(engine=engine, image=IMAGE)
    try:
        yield make(MODEL, load_seconds=0.1, labels={"dispatcher.endpoint": endpoint}).endpoint
    finally:
        for container in make.made:
            with suppress(docker.errors.DockerException):
                container.remove()
        engine.client.close()
