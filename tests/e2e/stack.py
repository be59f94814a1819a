"""The live stack: what a dashboard, an alert or a check asks is asked of real programs that have something to say.

A real Prometheus with our prometheus.yml (its targets and intervals replaced) and our rules, a real node_exporter, the
daemon under rehearsal with traffic through every door, and captures of real expositions (tests/fixtures/expositions)
served with counters that grow. One per process of a test run: fixture `live_stack` of tests/conftest.py.

    def test_x(live_stack):
        assert live_stack.prometheus.query("dispatcher_decisions_total > 0")
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.captures import CaptureServer
from tests.e2e.running import ROOT, RunningDaemon, running
from tests.e2e.stack_traffic import Traffic, first_traffic
from tests.realparts import Process, RealPrometheus, eventually, pick_port, prometheus_parts

PROMETHEUS = ROOT / "prometheus"
EXPOSITIONS = ROOT / "tests" / "fixtures" / "expositions"
READY_SECONDS = 60.0  # a deadline: two busy cores; 15 s when idle
INTERVALS = ("scrape_interval", "scrape_timeout", "evaluation_interval")


@dataclass(slots=True, kw_only=True)
class Stack:
    """targets: job → host:port, of the jobs that were kept; left_out: jobs whose program or capture is not here."""

    prometheus: RealPrometheus
    daemon: RunningDaemon
    targets: dict[str, str]
    left_out: tuple[str, ...]
    captures: dict[str, CaptureServer]
    traffic: Traffic

    def has(self, job: str) -> bool:
        return job in self.targets


def prometheus_yml() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    return read


def retargeted(config: Mapping[str, Any], targets: Mapping[str, str]) -> list[dict[str, Any]]:
    """The jobs of which we have a target, each with it and nothing else replaced; labels of the first target stay."""
    jobs = []
    for given in config["scrape_configs"]:
        if given["job_name"] not in targets:
            continue
        left_out = (*INTERVALS, "authorization")  # our exporter is on loopback here: no key
        job = {key: value for key, value in given.items() if key not in left_out and not key.endswith("_sd_configs")}
        labels = (given.get("static_configs") or [{}])[0].get("labels", {})
        job["static_configs"] = [{"targets": [targets[given["job_name"]]], "labels": labels}]
        jobs.append(job)
    return jobs


def quick_rules(folder: Path) -> list[Path]:
    """Our rule files, evaluated every second whatever interval they ask for."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        read = yaml.safe_load(path.read_text())
        for group in read["groups"]:
            group.pop("interval", None)
        written.append(folder / path.name)
        written[-1].write_text(yaml.safe_dump(read, sort_keys=False))
    return written


@contextmanager
def alertmanager(folder: Path) -> Iterator[str | None]:
    """Its address; None where the program is not installed."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    config, address = folder / "alertmanager.yml", f"127.0.0.1:{pick_port()}"
    config.write_text(yaml.safe_dump({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}))
    flags = [f"--config.file={config}", f"--storage.path={folder / 'data'}", f"--web.listen-address={address}"]
    process = Process.start([program, *flags, "--cluster.listen-address="], folder / "log")
    try:
        process.wait_for_http(f"http://{address}/-/ready")
        yield address
    finally:
        process.stop()


def rehearsed(prometheus_url: str) -> dict[str, Any]:
    """Simulated models, twenty times as fast; on a simulated host that has room for all three."""
    return {
        "lifecycle": {"provider": "rehearsal", "reconcile_interval": "1s", "idle": "1h"},
        "rehearsal": {"time_scale": 0.05, "host_memory": "24GiB"},
        "telemetry": {"interval": "1s", "prometheus": {"url": prometheus_url, "timeout": "800ms"}},
        "gateway": {"retries": {"backoff": "20ms"}},
    }


def live_stack_parts(
    request: pytest.FixtureRequest, folder: Path, node_exporter: str, *, settings: Mapping[str, Any] | None = None
) -> Iterator[Stack]:
    """What the fixture does, for a stack of one's own. node_exporter: host:port, of the fixture or of an Exporter
    (machine.py) that can go away. settings: over those of the daemon, section by section."""
    with ExitStack() as ends:
        config, port = prometheus_yml(), pick_port()
        whole = rehearsed(f"http://127.0.0.1:{port}")
        for section, keys in (settings or {}).items():
            whole[section] = {**whole.get(section, {}), **keys} if isinstance(keys, Mapping) else keys
        captures = {
            path.stem: ends.enter_context(CaptureServer(path.read_text())) for path in EXPOSITIONS.glob("*.prom")
        }
        no_docker = {"DOCKER_HOST": "unix:///tmp/none.sock"}
        daemon = ends.enter_context(running(folder / "daemon", whole, environment=no_docker))
        manager = ends.enter_context(alertmanager(folder / "alertmanager"))
        targets = {"prometheus": f"127.0.0.1:{port}", "node": node_exporter}
        targets |= {"dispatcher": f"127.0.0.1:{daemon.exporter_port}"}
        targets |= {job: capture.address for job, capture in captures.items()}
        targets |= {} if manager is None else {"alertmanager": manager}
        jobs = retargeted(config, targets)
        kept = {job["job_name"]: targets[job["job_name"]] for job in jobs}
        left_out = [job["job_name"] for job in config["scrape_configs"] if job["job_name"] not in kept]
        alerting = {} if manager is None else {"alerting": _to(config, manager)}
        for factory in prometheus_parts(request, folder):
            prometheus = factory(jobs, rule_files=quick_rules(folder / "rules"), settings=alerting, port=port)
            _wait_until_scraped(prometheus, kept)
            first_traffic(daemon)
            with Traffic(daemon) as traffic:
                stack = Stack(
                    prometheus=prometheus,
                    daemon=daemon,
                    targets=kept,
                    left_out=tuple(left_out),
                    captures=captures,
                    traffic=traffic,
                )
                _wait_until_it_has_rates(stack)
                yield stack


def _to(config: Mapping[str, Any], manager: str) -> dict[str, Any]:
    """What the file says of alerting, and one Alertmanager: ours."""
    return {**config.get("alerting", {}), "alertmanagers": [{"static_configs": [{"targets": [manager]}]}]}


def _wait_until_scraped(prometheus: RealPrometheus, targets: Mapping[str, str]) -> None:
    """Before there is traffic: counters must be seen at 0, or their first growth is nobody's rate."""

    def up() -> bool | None:
        return {row["metric"]["job"] for row in prometheus.query("up == 1")} >= set(targets) or None

    eventually(up, deadline_seconds=READY_SECONDS, what=lambda: f"{sorted(targets)}: {prometheus.query('up')}")


def _wait_until_it_has_rates(stack: Stack) -> None:
    """Two scrapes after the traffic, and the rules evaluated on them."""
    for expr in ("sum(rate(ollama_requests_total[1m])) > 0", "sum(rate(dispatcher_fallbacks_total[1m])) > 0"):
        stack.prometheus.wait_for(expr, READY_SECONDS)
    groups = yaml.safe_load((PROMETHEUS / "rules" / "recording.yml").read_text())["groups"]
    stack.prometheus.wait_for(groups[-1]["rules"][-1]["record"], READY_SECONDS)
