"""Seeded fault schedules: the running daemon, a real Prometheus, a real Docker Engine, and an independent checker.

    scripts/test tests/e2e/test_fault_schedules.py                        the first 20
    scripts/test --seeds 50 tests/e2e/test_fault_schedules.py             more of them
    scripts/test -m chaos tests/e2e/test_fault_schedules.py               300
    scripts/test tests/e2e/test_fault_schedules.py -k seed-17             one again

A schedule is a function of its seed: faults at the doors to Prometheus, Docker and the model servers, requests by
concurrent clients, and containers started, stopped and killed by hand. What must hold: verdicts.py.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests import attendance
from tests.e2e.faults import real_prometheus, snapshot
from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import MIB, RunningDaemon, chain
from tests.e2e.schedules import MODELS, Player, schedule
from tests.e2e.verdicts import Evidence, calls_of, events_of, violations
from tests.faultproxy import FaultProxy
from tests.realdocker import SOCKET, DockerEngine, ModelContainer, containers
from tests.realparts import eventually

ALL = 300
LIMITS = {"phi3:mini": 300 * MIB, "llama3.2:3b": 500 * MIB, "qwen2.5:7b": 700 * MIB}
CAPACITY_BYTES, RESERVE_BYTES = 2200 * MIB, 1000 * MIB  # room for phi beside either of the others, not for all
CONVERGES_SECONDS = 30.0  # two on an idle machine; a bound, and no measurement
SETTLED = ("ready", "stopped")

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.needs_node_exporter, pytest.mark.needs_docker]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        chaos = any(mark.name == "chaos" for mark in metafunc.definition.iter_markers())
        count = max(ALL, metafunc.config.getoption("--seeds")) if chaos else metafunc.config.getoption("--seeds")
        metafunc.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in range(count)])


@dataclass(slots=True, kw_only=True)
class Figures:
    schedules: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    converged_seconds: list[float] = field(default_factory=list)

    def lines(self) -> list[str]:
        if not self.schedules:
            return []
        slowest, middle = max(self.converged_seconds), statistics.median(self.converged_seconds)
        return [
            f"{self.schedules} fault schedules, {sum(self.requests.values())} requests, no violation",
            "answers: " + ", ".join(f"{what}: {count}" for what, count in sorted(self.requests.items())),
            "Docker's events: " + ", ".join(f"{what}: {count}" for what, count in sorted(self.done.items())),
            f"converged after the last fault in {middle:.1f} s (median), {slowest:.1f} s (slowest)",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    daemon: RunningDaemon
    doors: dict[str, FaultProxy]
    containers: dict[str, ModelContainer]
    stranger: ModelContainer
    label: str
    figures: Figures

    def well(self) -> bool | None:
        """Nothing failing, every place ready and running, or stopped and not running."""
        told, models = snapshot(self.daemon), self.daemon.get("/models").json()
        states = {model["model"]: model["places"][0]["state"] for model in models["models"] if model["places"]}
        if told["freshness"] != "fresh" or told["failing"] or models["failing"] or len(states) < len(MODELS):
            return None
        runs = {model: container.state()["Running"] for model, container in self.containers.items()}
        return states == {model: "ready" if up else "stopped" for model, up in runs.items()} or None

    def empty(self) -> None:
        """Where every schedule begins: nothing runs."""
        with ThreadPoolExecutor(len(MODELS)) as hands:
            up = [one for one in self.containers.values() if one.state()["Running"]]
            list(hands.map(lambda container: container.stop(0), up))
        eventually(
            lambda: (self.well() and set(self.daemon.states().values()) == {"stopped"}) or None,
            deadline_seconds=CONVERGES_SECONDS,
            what=lambda: f"nothing to run: {self.daemon.states()}\n{self.daemon.log()}",
        )

    def converge(self) -> None:
        """By itself: nobody does anything but wait, and then ask."""
        eventually(
            self.well,
            deadline_seconds=CONVERGES_SECONDS,
            what=lambda: (
                f"all to be well: {self.daemon.get('/models').text}\n{self.daemon.get('/snapshot').text[:300]}"
            ),
        )
        answer = self.daemon.select(wait_seconds=CONVERGES_SECONDS)
        assert (200, "ready") == (answer.status_code, answer.json().get("state")), answer.text
        assert 204 == self.daemon.delete(f"/leases/{answer.json()['lease']['id']}").status_code


@pytest.fixture(scope="module")
def arena(
    request: pytest.FixtureRequest,
    node_exporter: str,
    docker_engine: DockerEngine,
    model_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("schedules")
    figures = Figures()
    label = f"dispatcher.test={docker_engine.prefix}"
    for make in containers(docker_engine, model_image):
        with ExitStack() as stack:
            prometheus = stack.enter_context(real_prometheus(request, folder, node_exporter))
            doors = {"prometheus": stack.enter_context(FaultProxy(prometheus.url))}
            doors["docker"] = stack.enter_context(FaultProxy(SOCKET, at=folder / "docker.sock"))
            made = {}
            for model in MODELS:
                doors[model] = stack.enter_context(FaultProxy())
                made[model] = make(
                    model,
                    memory_bytes=LIMITS[model],
                    load_seconds=0.1,
                    labels={"dispatcher.endpoint": doors[model].url},
                )
                doors[model].target = made[model].endpoint
            stranger = make("phi3:mini", labels={"dispatcher.managed": None, "dispatcher.model": None}).start()
            daemon = RunningDaemon(
                folder=folder / "daemon",
                config=config(doors["prometheus"].url, doors["docker"].url, docker_engine.mine),
            )
            stack.callback(daemon.stop)
            daemon.start()
            yield Arena(daemon=daemon, doors=doors, containers=made, stranger=stranger, label=label, figures=figures)
    attendance.tell(request.config, figures.lines())  # wanted also when all went well


def config(prometheus_url: str, docker_url: str, labels: dict[str, str]) -> dict[str, Any]:
    """Nothing stands in for Prometheus, and what fails may be tried again soon."""
    return {
        "models": chain(*LIMITS.values()),
        "telemetry": {
            "interval": "0.5s",
            "host_enabled": False,
            "prometheus": {"enabled": "true", "url": prometheus_url, "timeout": "0.5s"},
        },
        "lifecycle": {
            "provider": "docker",
            "docker_url": docker_url,
            "docker_labels": labels,
            "reconcile_interval": "0.5s",
            "list_timeout": "1s",
            "start_timeout": "4s",
            "load_timeout": "5s",
            "stop_grace": "1s",
            "stop_timeout": "10s",
            "backoff_min": "0.2s",
            "backoff_max": "0.5s",
            "restart_window": "2s",
            "quarantine": "0.5s",
            "quarantine_max": "0.5s",
            "dwell": "0s",
            "idle": "1h",
            "capacity": CAPACITY_BYTES,
            "reserve": RESERVE_BYTES,
        },
        "policy": {**CPU_NEVER_MATTERS, "recover_after": "1s", "memory_leave_ratio": 1.11, "blind_after": "3s"},
    }


def test_faults_of_everything_at_once_break_no_promise(arena: Arena, seed: int):
    one_schedule(arena, seed)


@pytest.mark.chaos
def test_three_hundred_fault_schedules_break_no_promise(arena: Arena, seed: int):
    one_schedule(arena, seed)


def one_schedule(arena: Arena, seed: int) -> None:
    steps = schedule(seed)
    try:
        play(arena, seed)
    except Exception as trouble:
        told = "\n".join(map(str, steps))
        raise AssertionError(f"seed {seed}: {trouble}\nthe schedule:\n{told}\n{arena.daemon.log()}") from trouble


def play(arena: Arena, seed: int) -> None:
    engine = arena.stranger.engine.client
    arena.empty()
    began = time.time()
    calls_before = len(arena.doors["docker"].passed)

    player = Player(arena.daemon, arena.doors, arena.containers)
    try:
        notes = player.play(schedule(seed))
    finally:  # the next schedule begins as this one did, whatever became of this one
        healed = time.monotonic()
        player.heal()
        player.give_all_back()
    assert arena.daemon.popen is not None and arena.daemon.popen.poll() is None, "the daemon has ended"
    arena.converge()
    converged_seconds = time.monotonic() - healed

    evidence = Evidence(
        events=events_of(engine, arena.label, began),
        calls=calls_of(arena.doors["docker"].passed[calls_before:]),
        notes=notes,
        limits={arena.containers[model].name: LIMITS[model] for model in MODELS},
        models={model: container.name for model, container in arena.containers.items()},
        strangers=frozenset({arena.stranger.name}),
        running_before=frozenset(),
        room_bytes=CAPACITY_BYTES - RESERVE_BYTES,
    )
    found = violations(evidence)
    assert not found, "\n".join(found)
    figures = arena.figures
    figures.schedules += 1
    figures.requests += notes.counts()
    figures.done += Counter(one.what for one in evidence.events)
    figures.converged_seconds.append(converged_seconds)
