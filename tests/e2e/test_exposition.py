"""What the running daemon exposes: taken by promtool, the same in both places, the same size whatever callers send, and
read by a real Prometheus as it is."""

from __future__ import annotations

import json
import random
import shutil
import string
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.running import RunningDaemon, running
from tests.realparts import eventually

NAMES = 10_000
ALWAYS_THERE = ("dispatcher_decisions_total", "dispatcher_model_state", "dispatcher_memory_capacity_bytes")
Series = tuple[str, frozenset[tuple[str, str]]]

pytestmark = pytest.mark.needs_prometheus


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    config = {
        "telemetry": {"interval": "1s", "prometheus": {"enabled": "false", "timeout": "1s"}},
        "lifecycle": {"provider": "rehearsal", "reconcile_interval": "1s", "idle": "1h"},
        "rehearsal": {"time_scale": 0.01},
    }
    with running(tmp_path_factory.mktemp("daemon"), config) as started:
        answer = started.select(model="llama3.2:3b", wait_seconds=30).json()
        told = {"decision_id": answer["decision_id"], "status": "ok", "duration_seconds": 1.5, "output_tokens": 40}
        assert 204 == started.post("/outcomes", **told).status_code
        eventually(  # what a look adds once the model is loaded, has been added
            lambda: {"ollama_info", "ollama_model_memory_usage_bytes"} <= names_in(exposition(started)) or None,
            deadline_seconds=30,
            what="the first look at the loaded model",
        )
        yield started


def exposition(daemon: RunningDaemon, port: int | None = None) -> str:
    answer = httpx.get(f"http://127.0.0.1:{port or daemon.port}/metrics", timeout=10, trust_env=False)
    assert 200 == answer.status_code
    return answer.text


def values(text: str) -> dict[Series, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names_in(text: str) -> set[str]:
    return {name for name, _ in values(text)}


def total(series: dict[Series, float], name: str, **labels: str) -> float:
    return sum(value for (of, its), value in series.items() if of == name and labels.items() <= its)


def check(text: str) -> tuple[int, str]:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_both_expositions_pass_promtool_and_are_the_same(daemon: RunningDaemon):
    if shutil.which("promtool") is None:
        pytest.skip("no `promtool` on the PATH (it comes with Prometheus)")
    own_port, api = exposition(daemon, daemon.exporter_port), exposition(daemon)

    assert (0, "") == check(own_port)
    assert (0, "") == check(api)
    assert values(own_port).keys() == values(api).keys()
    assert set(ALWAYS_THERE) <= names_in(api)


def random_name(chance: random.Random) -> str:
    letters = string.ascii_lowercase + string.digits + ":.-/ äß✓\"\\{}='"
    return "".join(chance.choices(letters, k=chance.randint(1, 60)))


def ask_for(daemon: RunningDaemon, names: list[str]) -> set[int]:
    """One after the other on one connection; the statuses that came."""
    connection = HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    statuses = set()
    for name in names:
        body = json.dumps({"model": name, "wait_seconds": 0, "agent": name[:30]}).encode()
        connection.request("POST", "/select", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        statuses.add(answer.status)
    connection.close()
    return statuses


def test_ten_thousand_random_model_names_add_no_series(daemon: RunningDaemon):
    chance = random.Random(7)
    ask_for(daemon, [random_name(chance)])  # the first refusal of its kind
    before = values(exposition(daemon))

    statuses = ask_for(daemon, [random_name(chance) for _ in range(NAMES)])

    after = values(exposition(daemon))
    assert {503} == statuses
    assert before.keys() == after.keys()
    asked = total(after, "dispatcher_decisions_total", outcome="none") - total(
        before, "dispatcher_decisions_total", outcome="none"
    )
    assert NAMES == asked


def test_every_decision_is_counted_by_what_it_came_to(daemon: RunningDaemon):
    before = values(exposition(daemon))
    for _ in range(3):
        assert "llama3.2:3b" == daemon.select(model="llama3.2:3b", task="coding", complexity="simple").json()["model"]
    assert 503 == daemon.select(requires=["vision"]).status_code
    daemon.select(model="llama3.2:3b", dry_run=True)

    after = values(exposition(daemon, daemon.exporter_port))

    def grew(**labels: str) -> float:
        return total(after, "dispatcher_decisions_total", **labels) - total(
            before, "dispatcher_decisions_total", **labels
        )

    assert 3 == grew(model="llama3.2:3b", task="coding", complexity="simple", outcome="chosen")
    assert 1 == grew(outcome="none")
    assert 3 == total(after, "dispatcher_rejections_total", rule="lacks_capability") - total(
        before, "dispatcher_rejections_total", rule="lacks_capability"
    )


def scraped(prometheus: Any, at_seconds: float) -> dict[Series, float]:
    """All series of the job as of one scrape, without the labels Prometheus adds."""
    answer = httpx.get(
        f"{prometheus.url}/api/v1/query",
        params={"query": '{job="dispatcher"}', "time": at_seconds},
        timeout=10,
        trust_env=False,
    )
    rows = answer.raise_for_status().json()["data"]["result"]
    found: dict[Series, float] = {}
    for row in rows:
        labels = {name: text for name, text in row["metric"].items() if name not in ("__name__", "job", "instance")}
        found[row["metric"]["__name__"], frozenset(labels.items())] = float(row["value"][1])
    return found


def test_a_real_prometheus_reads_what_is_exposed(daemon: RunningDaemon, prometheus_factory: Any, tmp_path: Path):
    address = f"127.0.0.1:{daemon.exporter_port}"
    prometheus = prometheus_factory([{"job_name": "dispatcher", "static_configs": [{"targets": [address]}]}])
    prometheus.wait_for('up{job="dispatcher"} == 1')
    began = values(exposition(daemon))
    read_at_seconds = time.time()

    def next_scrape() -> float | None:
        """When it began; both processes read the same clock."""
        at_seconds = float(prometheus.query('timestamp(up{job="dispatcher"})')[0]["value"][1])
        return at_seconds if at_seconds > read_at_seconds else None

    at = eventually(next_scrape, deadline_seconds=30, what="another scrape")
    theirs = scraped(prometheus, at)
    ended = values(exposition(daemon))

    quiet = {series: value for series, value in began.items() if value == ended.get(series)}
    assert len(quiet) > 0.9 * len(began), "the daemon is idle: what changes are ages and times"
    assert set(ALWAYS_THERE) <= {name for name, _ in quiet}
    assert quiet == {series: theirs.get(series) for series in quiet}
    assert ended.keys() <= theirs.keys(), "and nothing is missing"
    assert [] == prometheus.query("scrape_samples_post_metric_relabeling != scrape_samples_scraped")
