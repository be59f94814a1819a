"""What shows that an alert comes: a real Prometheus with our rules and a real Alertmanager, one of each per module.

The rules are ours but for one thing, or nobody would wait for them: every duration is a sixtieth of what it is, though
never below 3 s, and a `for` never above 30 s (`for: 5m` is 5 s, `[1h]` is [60s]); and so are the seconds a rate is
multiplied by to count. Prometheus scrapes and evaluates every second.

    def test_a_dispatcher_that_is_killed(watching, tmp_path):
        with house(tmp_path / "house") as there, watching.of(there.daemon) as watch:
            there.daemon.kill()
            watch.wait_for("DispatcherDown")
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.attendance import unavailable
from tests.e2e.gateway_house import API_JSON, House, Way
from tests.e2e.running import RunningDaemon
from tests.e2e.stack import alertmanager
from tests.prometheus_rules.rulefiles import RULES, alerts
from tests.realparts import RealPrometheus, eventually, prometheus_parts

SHORTER, SHORTEST_SECONDS, LONGEST_FOR_SECONDS = 60, 3, 30
# A deadline: a `for` of up to 30 s (nearly all: 5 s), after a window of up to 15 s, on two busy cores.
PATIENCE_SECONDS = 90.0
NO_DOCKER = {"DOCKER_HOST": "unix:///tmp/none.sock"}
JOBS = ("dispatcher", "cadvisor")
_DURATION = re.compile(r"\[(\w+)\]")
_UNITS = {"h": 3600, "m": 60, "s": 1}


def seconds_of(duration: str) -> int:
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def shortened(duration: str) -> str:
    whole = seconds_of(duration)
    return f"{max(SHORTEST_SECONDS, whole // SHORTER) if whole else 0}s"


def shortened_for(duration: str) -> str:
    return f"{min(LONGEST_FOR_SECONDS, seconds_of(shortened(duration)))}s"


def shortened_expression(expr: str) -> str:
    shorter = _DURATION.sub(lambda match: f"[{shortened(match[1])}]", expr)
    return re.sub(r"\* (\d{3,})\b", lambda match: f"* {int(match[1]) // SHORTER}", shorter)


def shortened_rules(folder: Path) -> list[Path]:
    folder.mkdir()
    for path in RULES.glob("*.yml"):
        read = yaml.safe_load(path.read_text())
        for rule in (rule for group in read["groups"] for rule in group["rules"]):
            rule["expr"] = shortened_expression(rule["expr"])
            if "for" in rule:
                rule["for"] = shortened_for(rule["for"])
        (folder / path.name).write_text(yaml.safe_dump(read))
    return sorted(folder.glob("*.yml"))


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What comes of one target. manager: Alertmanager's host:port. instance: the target's, and of all its alerts."""

    prometheus: RealPrometheus
    manager: str
    instance: str

    def received(self, alert: str) -> list[dict[str, Any]]:
        parameters = {"filter": [f'alertname="{alert}"', f'instance="{self.instance}"']}
        answer = httpx.get(f"http://{self.manager}/api/v2/alerts", params=parameters, timeout=10, trust_env=False)
        answer.raise_for_status()
        told: list[dict[str, Any]] = answer.json()
        return told

    def wait_for(self, alert: str, meanwhile: Callable[[], object] | None = None, **labels: str) -> dict[str, Any]:
        """The alert as Alertmanager was told it: its labels, its severity, and words without a hole. meanwhile: called
        again and again until then."""

        def there() -> dict[str, Any] | None:
            if meanwhile is not None:
                meanwhile()
            return next((one for one in self.received(alert) if labels.items() <= one["labels"].items()), None)

        def seen() -> str:
            firing = self.prometheus.query(f'ALERTS{{instance="{self.instance}"}}')
            return f"{alert}{labels}: {[row['metric'] for row in firing]}"

        one = eventually(there, deadline_seconds=PATIENCE_SECONDS, what=seen)
        assert alerts()[alert]["labels"]["severity"] == one["labels"]["severity"]
        assert set(alerts()[alert]["annotations"]) == set(one["annotations"])
        assert not re.search(r"{{|<no value>|NaN", " ".join(one["annotations"].values())), one
        return one


@dataclass(frozen=True, kw_only=True)
class Watching:
    """folder: of the files that name the targets, which Prometheus reads anew when they change."""

    prometheus: RealPrometheus
    manager: str
    folder: Path
    targets: dict[str, list[str]] = field(default_factory=lambda: {job: [] for job in JOBS})

    @contextmanager
    def over(self, job: str, address: str) -> Iterator[Watch]:
        """address: host:port. It has been scraped twice by then, and the rules were evaluated on it."""
        self.targets[job].append(address)
        self.tell()
        try:
            self.prometheus.wait_for(f'sum_over_time(up{{job="{job}",instance="{address}"}}[1m]) >= 2')
            yield Watch(prometheus=self.prometheus, manager=self.manager, instance=address)
        finally:
            self.targets[job].remove(address)
            self.tell()

    def of(self, daemon: RunningDaemon) -> AbstractContextManager[Watch]:
        return self.over("dispatcher", f"127.0.0.1:{daemon.exporter_port}")

    def tell(self) -> None:
        for job, addresses in self.targets.items():
            written = self.folder / f"{job}.json.new"
            written.write_text(json.dumps([{"targets": addresses}]))
            written.rename(self.folder / f"{job}.json")  # whole or not at all


@pytest.fixture(scope="module")
def watching(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    folder = tmp_path_factory.mktemp("watching")
    with alertmanager(folder / "alertmanager") as manager:
        if manager is None:
            unavailable(request.config, "Alertmanager", "prometheus-alertmanager is not installed")
        jobs = [
            {"job_name": job, "file_sd_configs": [{"files": [str(folder / f"{job}.json")], "refresh_interval": "1s"}]}
            for job in JOBS
        ]
        told = {"alerting": {"alertmanagers": [{"static_configs": [{"targets": [manager]}]}]}}
        for factory in prometheus_parts(request, folder):
            prometheus = factory(jobs, rule_files=shortened_rules(folder / "rules"), settings=told)
            yield Watching(prometheus=prometheus, manager=manager, folder=folder)


async def asking_until(
    there: House,
    told: Callable[[], Any],
    script: Mapping[str, Any],
    *,
    way: Way = API_JSON,
    at_once: int = 4,
    every: int = 1,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Requests, one after another in a few lines, until `told` returns. The script is for the last of every so many;
    the others are answered well."""
    there.server.script("case-fault", script)

    async def ask_on() -> None:
        asked = 0
        while True:
            asked += 1
            await there.ask(way, "case-well" if asked % every else "case-fault", headers=headers)
            await asyncio.sleep(0.05)

    asking = [asyncio.create_task(ask_on(), name=f"asks {number}") for number in range(at_once)]
    try:
        return await asyncio.to_thread(told)
    finally:
        for task in asking:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*asking)
