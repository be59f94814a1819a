"""scripts/verify-metrics.sh where something is odd rather than gone: each reason, from a real Prometheus."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.captures import CaptureServer
from tests.realparts import RealPrometheus, prometheus_parts
from tests.verify_metrics.script import judged, last_line, verify

pytestmark = pytest.mark.needs_prometheus

NODE = """# TYPE node_memory_MemAvailable_bytes gauge
node_memory_MemAvailable_bytes NaN
node_memory_MemTotal_bytes 8e9
"""
# As where cAdvisor sees the cgroups and not Docker; one has a name, and stopped long ago.
CADVISOR = """container_memory_rss{id="/"} 5
container_memory_mapped_file{id="/x",name="ollama-phi3"} 5
"""
DISPATCHER = """ollama_up{place="docker:ollama-phi3"} 1
ollama_queue_wait_seconds_count{model="phi3:mini"} 0
dispatcher_leases 0
"""
RULES = {
    "groups": [
        {
            "name": "odd",
            "rules": [
                # Two series on the right for one on the left.
                {
                    "record": "instance:node_memory_available:ratio",
                    "expr": "up * on () group_left () up",
                },
                {"record": "instance:dispatcher_idle_model_bytes:rate5m", "expr": "dispatcher_leases > 5"},
                {"record": "instance:dispatcher_fallbacks:ratio_rate15m", "expr": "dispatcher_leases > 5"},
                {"record": "instance:node_cpu_busy:ratio_rate2m", "expr": "node_cpu_seconds_total"},
                {"record": "instance:dispatcher_memory_reserved:ratio", "expr": "dispatcher_leases + 1"},
            ],
        }
    ]
}


def as_jobs(ends: ExitStack, expositions: dict[str, str]) -> list[dict[str, Any]]:
    """Each served by a job of that name."""
    servers = {job: ends.enter_context(CaptureServer(said)) for job, said in expositions.items()}
    return [{"job_name": job, "static_configs": [{"targets": [server.address]}]} for job, server in servers.items()]


@pytest.fixture(scope="module")
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RealPrometheus, RealPrometheus]]:
    """One with odd series and rules, and one with old samples; together, for each takes 5 s to its first scrape."""
    folder: Path = tmp_path_factory.mktemp("odd")
    rules = folder / "rules.yml"
    rules.write_text(yaml.safe_dump(RULES))
    now_ms = int(time.time() * 1000)
    samples = {
        "cadvisor": f'container_memory_working_set_bytes{{name="a"}} 5 {now_ms - 240_000}\n',
        "node": f"node_memory_MemTotal_bytes 8e9 {now_ms - 600_000}\n",
    }
    with ExitStack() as ends:
        series = {"machines-node": NODE, "cadvisor": CADVISOR, "dispatcher": DISPATCHER}
        for factory in prometheus_parts(request, folder):
            odd = factory(as_jobs(ends, series), rule_files=[rules])
            old = factory(as_jobs(ends, samples))
            for probe in ("container_memory_rss", "node_memory_MemTotal_bytes"):
                odd.wait_for(probe)
            odd.wait_for("instance:dispatcher_memory_reserved:ratio")
            for probe in ("container_memory_working_set_bytes", "node_memory_MemTotal_bytes offset 7m"):
                old.wait_for(probe)
            yield odd, old


@pytest.fixture(scope="module")
def prometheus(both: tuple[RealPrometheus, RealPrometheus]) -> RealPrometheus:
    return both[0]


@pytest.fixture(scope="module")
def told(prometheus: RealPrometheus) -> dict[str, dict[str, Any]]:
    status, told = judged(prometheus.url)
    assert 1 == status
    return told


@pytest.mark.parametrize(
    ("name", "ok", "reason", "fix"),
    [
        ("node_memory_MemTotal_bytes", True, None, None),
        ("node_memory_MemAvailable_bytes", False, "value NaN", "What exposes it is at fault"),
        # The job is called otherwise, and is found.
        ("node_cpu_seconds_total", False, "no such series, though job machines-node is up", "Is it node_exporter"),
        ("node_pressure_cpu_waiting_seconds_total", True, "the kernel counts no pressure (PSI)", None),
        ("container_memory_rss", False, "series are there, but none with a container name", "Docker's socket"),
        ("container_memory_mapped_file", True, None, None),
        ("container_oom_events_total", False, "no such series, though job cadvisor is up", "/dev/kmsg"),
        ("ollama_queue_wait_seconds", True, None, None),  # by its _count, which stands at 0
        ("ollama_info", True, "no model server has told its version yet", None),
        ("ollama_load_duration_seconds", False, "no such series, though job dispatcher is up", "of the version"),
        ("dispatcher_memory_capacity_bytes", False, "no such series", "dispatcher status says which source fails"),
        ("instance:node_memory_available:ratio", False, "rule fails: found duplicate series", "promtool check rules"),
        ("instance:dispatcher_idle_model_bytes:rate5m", False, "loaded, and yields nothing", "dispatcher_leases > 5"),
        ("instance:dispatcher_fallbacks:ratio_rate15m", True, "nothing happened within its window", None),
        ("instance:node_cpu_busy:ratio_rate2m", True, "follows from node_cpu_seconds_total", None),
        ("instance:dispatcher_memory_reserved:ratio", True, None, None),
        ("instance:node_cpu_steal:ratio_rate2m", False, "rule not loaded", "rule_files"),
        ("DispatcherDown", False, "rule not loaded", "rule_files"),
        ("n8n_version_info", True, "job n8n is not configured", None),
    ],
)
def test_each_oddity_has_its_reason_and_its_fix(
    told: dict[str, dict[str, Any]], name: str, ok: bool, reason: str | None, fix: str | None
):
    one = told[name]

    assert (ok, reason is None) == (one["ok"], one["present"])
    assert (one["reason"] or "").startswith(reason or "")
    assert (fix or "") in (one["fix"] or "")
    assert (fix is None) == (one["fix"] is None)


@pytest.fixture
def misnamed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealPrometheus]:
    """The exporter is scraped, by a job that is not called dispatcher."""
    rules = tmp_path / "rules.yml"
    absent = {"alert": "DispatcherDown", "expr": 'absent(up{job="dispatcher"})'}
    rules.write_text(yaml.safe_dump({"groups": [{"name": "down", "rules": [absent]}]}))
    with ExitStack() as ends:
        for factory in prometheus_parts(request, tmp_path):
            started = factory(as_jobs(ends, {"ai-dispatcher": DISPATCHER}), rule_files=[rules])
            started.wait_for("ollama_up")
            yield started


def test_a_job_of_another_name_does_for_the_metrics_and_not_for_the_alert_that_looks_for_it(misnamed: RealPrometheus):
    _, told = judged(misnamed.url)

    assert told["ollama_up"]["ok"]
    assert not told["DispatcherDown"]["ok"]
    assert told["DispatcherDown"]["reason"].endswith("the job here is ai-dispatcher")
    assert "prometheus.yml: job_name dispatcher." == told["DispatcherDown"]["fix"]


def test_the_last_line_names_them_one_by_one(prometheus: RealPrometheus):
    assert "missing: node_cpu_seconds_total, node_memory_MemAvailable_bytes, node_memory_MemFree_bytes" == last_line(
        verify(prometheus.url, "--only", "host")
    )


def test_series_that_are_old_by_their_own_timestamps_are_stale(both: tuple[RealPrometheus, RealPrometheus]):
    """Of 4 minutes ago, as cAdvisor's of a container that has stopped, where the job honours them: Prometheus still
    shows it. Of 10 minutes ago: it does no more."""
    _, told = judged(both[1].url)

    of_a_container, of_the_host = told["container_memory_working_set_bytes"], told["node_memory_MemTotal_bytes"]
    assert (False, False) == (of_a_container["ok"], of_the_host["ok"])
    assert of_a_container["reason"].startswith("series is stale since 4 min")
    assert "honor_timestamps: false" in of_a_container["fix"]
    # Since Prometheus shows it no more, on a grid of 30 s.
    assert re.fullmatch(r"series is stale since [56] min, though job node is up", of_the_host["reason"])
    assert "job dispatcher is not configured" == told["ollama_up"]["reason"]
    assert "job_name dispatcher" in told["ollama_up"]["fix"]
