"""What the fault tests share: the tables of docs/faults.md, fleets, and what Docker says was done to them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import MIB, ROOT, RunningDaemon, chain
from tests.realdocker import ModelContainer, ModelContainers
from tests.realparts import RealPrometheus, eventually, prometheus_parts

DOCUMENT = ROOT / "docs" / "faults.md"
POLL_SECONDS = 0.5
SOON_SECONDS = 30  # for what takes two seconds on an idle machine
ACTIONS = ("start", "stop", "kill", "die", "restart", "pause", "unpause", "destroy", "rename")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table. standing, other: its third and fourth cell, what /select answers in the two cases."""

    fault: str
    codes: frozenset[str]
    failing: bool
    standing: str
    other: str

    def __str__(self) -> str:
        return self.fault


def rows(section: str) -> list[Row]:
    """Of the first table below that heading."""
    text = DOCUMENT.read_text().partition(f"\n## {section}\n")[2]
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return [
        Row(fault=fault, codes=words(codes), failing=failing == "yes", standing=standing, other=other)
        for fault, codes, failing, standing, other, _never, _back in cells
    ]


def words(cell: str) -> frozenset[str]:
    return frozenset(re.findall(r"`(\w+)`", cell))


def status(cell: str) -> int:
    return int(cell[:3])


def parametrized(section: str, injected: Mapping[str, object]) -> pytest.MarkDecorator:
    """Every row, and every fault that has a test and no row: both must be."""
    told = {row.fault: row for row in rows(section)}
    nobody = Row(fault="", codes=frozenset(), failing=False, standing="", other="")
    return pytest.mark.parametrize(
        "row", [pytest.param(told.get(name, nobody), id=name) for name in dict.fromkeys((*told, *injected))]
    )


@dataclass(slots=True, kw_only=True)
class Fleet:
    """phi3:mini, which will run, and qwen2.5:7b, which will not; room for both. mine: this fleet's own labels."""

    mine: Mapping[str, str]
    phi: ModelContainer
    qwen: ModelContainer
    make: ModelContainers
    since: str = field(default_factory=lambda: f"{time.time():.6f}")

    @classmethod
    def made(cls, make: ModelContainers, name: str, **labels: str) -> Fleet:
        ours = {"dispatcher.fleet": name, **labels}
        phi = make("phi3:mini", memory_bytes=400 * MIB, load_seconds=0.1, labels=ours, name=f"{name}-phi")
        qwen = make("qwen2.5:7b", memory_bytes=800 * MIB, load_seconds=0.1, labels=ours, name=f"{name}-qwen")
        return cls(mine={**make.engine.mine, "dispatcher.fleet": name}, phi=phi, qwen=qwen, make=make)

    def forget(self) -> None:
        """What was done until now is nobody's business any more."""
        self.since = f"{time.time():.6f}"

    def done(self) -> list[tuple[str, str]]:
        """(container, what) as Docker itself tells it, of this fleet and of all that has one of its names."""
        client: Any = self.make.engine.client  # its types know no fractions of a second
        told = client.events(since=self.since, until=f"{time.time():.6f}", decode=True, filters={"type": "container"})
        names = (self.phi.name, self.qwen.name)
        return [
            (event["Actor"]["Attributes"]["name"], event["Action"])
            for event in told
            if event["Actor"]["Attributes"].get("name") in names and event["Action"] in ACTIONS
        ]


def config(fleet: Fleet, prometheus_url: str | None, *, host: bool, **lifecycle: Any) -> dict[str, Any]:
    """Polls twice a second, and looks at Docker twice a second."""
    asked = {"enabled": "true", "url": prometheus_url, "timeout": f"{POLL_SECONDS}s", "max_body": "1MiB"}
    return {
        "models": chain(300 * MIB, 500 * MIB, 700 * MIB),
        "telemetry": {
            "interval": f"{POLL_SECONDS}s",
            "host_enabled": host,
            "prometheus": asked if prometheus_url else {"enabled": "false", "timeout": f"{POLL_SECONDS}s"},
        },
        "lifecycle": {
            "provider": "docker",
            "docker_labels": dict(fleet.mine),
            "reconcile_interval": "0.5s",
            "list_timeout": "1s",
            "start_timeout": "3s",
            "stop_grace": "1s",
            "stop_timeout": "3s",
            "dwell": "0s",
            "idle": "1h",
            "capacity": 2200 * MIB,
            "reserve": 1000 * MIB,
            **lifecycle,
        },
        "policy": {**CPU_NEVER_MATTERS, "recover_after": "1s", "memory_leave_ratio": 1.11},
    }


@contextmanager
def real_prometheus(request: pytest.FixtureRequest, folder: Path, target: str) -> Iterator[RealPrometheus]:
    """One that scrapes twice a second, and has all it needs for every host signal."""
    job = {
        "job_name": "node",
        "scrape_interval": "500ms",
        "scrape_timeout": "500ms",
        "static_configs": [{"targets": [target]}],
    }
    for factory in prometheus_parts(request, folder):
        prometheus = factory([job])
        prometheus.wait_for("rate(node_cpu_seconds_total[60s])")
        yield prometheus


def snapshot(daemon: RunningDaemon) -> dict[str, Any]:
    told: dict[str, Any] = daemon.get("/snapshot").json()
    return told


def checks(daemon: RunningDaemon) -> tuple[int, dict[str, dict[str, Any]]]:
    """/readyz: its status, and its checks by name."""
    answer = daemon.get("/readyz", verbose="1")
    return answer.status_code, {check["name"]: check for check in answer.json()["checks"]}


def abandoned_threads(daemon: RunningDaemon) -> float:
    found = re.search(r"(?m)^dispatcher_abandoned_threads (.+)$", daemon.get("/metrics").text)
    assert found is not None
    return float(found[1])


def codes(answer: dict[str, Any]) -> frozenset[str]:
    return frozenset(reason["code"] for reason in answer["reasons"])


def candidate(answer: dict[str, Any], model: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = next((one for one in answer["candidates"] if one["model"] == model), None)
    return found


def wait_until_well(*daemons: RunningDaemon) -> None:
    """Everything is seen, and qwen could be started; the scrape interval is known."""

    def well(daemon: RunningDaemon) -> bool | None:
        told = snapshot(daemon)
        seen = told["freshness"] == "fresh" and not told["failing"] and not daemon.get("/models").json()["failing"]
        # Known again, and not for the outages before: until then what is stale would still count as fresh.
        interval_seconds = told["scrape_interval_seconds"] or math.inf
        if not seen or (daemon.config["telemetry"]["prometheus"]["enabled"] == "true" and interval_seconds > 1.0):
            return None
        answer = daemon.select(model="qwen2.5:7b", dry_run=True)
        return (answer.status_code == 200 and not answer.json()["degraded"]) or None

    for daemon in daemons:
        eventually(
            lambda daemon=daemon: well(daemon),  # type: ignore[misc]
            deadline_seconds=SOON_SECONDS,
            what=lambda daemon=daemon: f"all to be well: {snapshot(daemon)}\n{daemon.log()}",  # type: ignore[misc]
        )


def bring_up(daemon: RunningDaemon, model: str) -> None:
    """Ready, and nobody's lease."""
    answer = daemon.select(model=model, wait_seconds=60)
    assert (200, "ready") == (answer.status_code, answer.json()["state"]), answer.text + daemon.log()
    assert 204 == daemon.delete(f"/leases/{answer.json()['lease']['id']}").status_code
