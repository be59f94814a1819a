"""The loop on a real Prometheus that scrapes a real node_exporter every second: what the daemon believes is what
Prometheus says, and when Prometheus has nothing fresh to say, nothing is started on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from dispatcher.vocabulary.settings import TelemetrySettings
from dispatcher.vocabulary.signal import HOST_SIGNALS
from dispatcher.wire.promql import effective_signals, single_query
from tests.e2e.machine import CPU_NEVER_MATTERS, CountingDoor, Exporter, model_server
from tests.e2e.running import MIB, RunningDaemon, chain, running
from tests.realparts import RealPrometheus, eventually, pick_port, prometheus_parts

SIGNALS = effective_signals(TelemetrySettings())
MEMORY = "host_memory_available_bytes"
SNAPSHOTS = 5  # compared one by one
COMMIT_SECONDS = 0.25  # from the end of a scrape until its samples can be queried; a few ms on an idle machine
STARTUP_QUERY = "1"  # the daemon's own look whether there is a Prometheus

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.needs_node_exporter]


def codes(answer: dict[str, Any]) -> list[str]:
    """Of its reasons, without the one that every lease on a shared Ollama server carries: it is best effort."""
    told = [reason["code"] for reason in answer["reasons"]]
    if answer["model"] is not None:
        assert "best_effort_lease" in told, told
        told.remove("best_effort_lease")
    return told


def config(prometheus_url: str, models_url: str, *, enabled: str = "true", host: bool = False) -> dict[str, Any]:
    """Polls every 1.3 s, scrapes every 1 s: a poll that meets a scrape is not followed by one that meets it again."""
    return {
        "models": chain(300 * MIB, 500 * MIB, 700 * MIB),
        "telemetry": {
            "interval": "1.3s",
            "host_enabled": host,
            "prometheus": {"enabled": enabled, "url": prometheus_url, "timeout": "1.2s"},
        },
        "lifecycle": {"provider": "ollama", "ollama_url": models_url, "reconcile_interval": "1s", "idle": "1h"},
        "policy": CPU_NEVER_MATTERS,
    }


@dataclass(slots=True, kw_only=True)
class Loop:
    """door: between the daemon and Prometheus, and counts."""

    exporter: Exporter
    prometheus: RealPrometheus
    door: CountingDoor
    daemon: RunningDaemon


@pytest.fixture(scope="module")
def exporter(node_exporter: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """Another one than the session's: it goes away and comes back."""
    exporter = Exporter(folder=tmp_path_factory.mktemp("exporter")).start()
    try:
        yield exporter
    finally:
        exporter.stop()


@pytest.fixture(scope="module")
def prometheus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, exporter: Exporter
) -> Iterator[RealPrometheus]:
    """With all it needs for every host signal: two scrapes."""
    for factory in prometheus_parts(request, tmp_path_factory.mktemp("prometheus")):
        prometheus = factory([{"job_name": "node", "static_configs": [{"targets": [exporter.address]}]}])
        prometheus.wait_for("rate(node_cpu_seconds_total[60s])")
        yield prometheus


@pytest.fixture
def models_url(tmp_path: Path) -> Iterator[str]:
    with model_server(tmp_path) as url:
        yield url


@pytest.fixture
def loop(exporter: Exporter, prometheus: RealPrometheus, models_url: str, tmp_path: Path) -> Iterator[Loop]:
    with (
        CountingDoor(prometheus.url) as door,
        running(tmp_path / "daemon", config(door.url, models_url)) as daemon,
    ):
        yield Loop(exporter=exporter, prometheus=prometheus, door=door, daemon=daemon)


def snapshot(daemon: RunningDaemon) -> dict[str, Any]:
    told: dict[str, Any] = daemon.get("/snapshot").json()
    return told


def wait_for_snapshot(daemon: RunningDaemon, **wanted: Any) -> dict[str, Any]:
    """The first snapshot whose fields are as wanted."""
    return eventually(
        lambda: told if wanted.items() <= (told := snapshot(daemon)).items() else None,
        deadline_seconds=30,
        what=lambda: f"a snapshot with {wanted}: {snapshot(daemon)}\n{daemon.log()}",
    )


def wait_until_the_interval_is_known(daemon: RunningDaemon) -> None:
    """Until then readings count as fresh for 45 s: three times the usual scrape interval."""
    eventually(lambda: snapshot(daemon)["scrape_interval_seconds"], deadline_seconds=30, what="the scrape interval")


def signals(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["signal"]: one for one in told["signals"] if one["subject"] == ""}


def asked(prometheus: RealPrometheus, query: str, at: str) -> list[dict[str, Any]]:
    """As of a moment given, RFC 3339: derived values (rates, ratios) depend on it to the millisecond."""
    answer = httpx.post(
        f"{prometheus.url}/api/v1/query", data={"query": query, "time": at}, timeout=10, trust_env=False
    )
    rows: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
    return rows


def met_a_scrape(prometheus: RealPrometheus, at: str) -> bool:
    """Whether a scrape was under way at that moment: its samples carry the time it began, and came later."""
    began, took = (
        float(asked(prometheus, query, at)[0]["value"][1])
        for query in ('timestamp(up{job="node"})', 'scrape_duration_seconds{job="node"}')
    )
    return datetime.fromisoformat(at).timestamp() <= began + took + COMMIT_SECONDS


def value_of(name: str, prometheus: RealPrometheus, at: str) -> float | None:
    rows = asked(prometheus, single_query(name, SIGNALS[name], None), at)
    values = [float(row["value"][1]) for row in rows if row["metric"]["signal"] == name]
    assert len(values) <= 1, rows
    if not values:
        return None
    return min(1.0, max(0.0, values[0])) if name.endswith("_ratio") else values[0]


def compared(loop: Loop, seen: set[int]) -> dict[str, tuple[float | None, float | None]] | None:
    """signal → (what Prometheus says, what the daemon says) of one moment. None: nothing new, or it met a scrape."""
    told = snapshot(loop.daemon)
    if told["number"] in seen or told["freshness"] != "fresh":
        return None
    ours = signals(told)
    at = ours[MEMORY]["evaluated_at"]
    if met_a_scrape(loop.prometheus, at):
        return None
    seen.add(told["number"])
    assert {at, None} >= {ours[name]["evaluated_at"] for name in HOST_SIGNALS}, "one poll, one query, one moment"
    return {name: (value_of(name, loop.prometheus, at), ours[name]["value"]) for name in HOST_SIGNALS}


def test_every_host_signal_is_what_prometheus_says_of_the_same_moment(loop: Loop):
    wait_for_snapshot(loop.daemon, source="prometheus", freshness="fresh")
    seen: set[int] = set()

    for _ in range(SNAPSHOTS):
        pairs = eventually(
            lambda: compared(loop, seen), deadline_seconds=30, what=lambda: f"a new snapshot: {snapshot(loop.daemon)}"
        )

        assert [(name, pytest.approx(theirs, rel=1e-12)) for name, (theirs, _) in pairs.items()] == [
            (name, ours) for name, (_, ours) in pairs.items()
        ]
        assert None not in {pairs[name][0] for name in (MEMORY, "host_memory_total_bytes", "host_cpu_busy_ratio")}
    told = snapshot(loop.daemon)
    assert {"prometheus"} == {one["source"] for one in signals(told).values() if one["value"] is not None}
    assert pytest.approx(1.0, abs=0.3) == told["scrape_interval_seconds"]


def test_a_poll_is_one_query(loop: Loop):
    def even(at_least: int) -> int | None:
        number = snapshot(loop.daemon)["number"]
        polls = len(loop.door.queries) - loop.door.queries.count(STARTUP_QUERY)
        return number if number == polls and number >= at_least else None

    # Equal at some moment (not while one is under way) only if no poll ever took more than one.
    counted = eventually(lambda: even(5), deadline_seconds=40, what=lambda: f"as many: {loop.door.queries}")

    assert 1 == loop.door.queries.count(STARTUP_QUERY)
    assert 1 == len(set(loop.door.queries[-3:])), "always the same one, for all signals"
    assert 5 <= counted


def test_fresh_readings_make_a_sure_decision_once_the_model_is_known(loop: Loop):
    wait_for_snapshot(loop.daemon, source="prometheus", freshness="fresh")
    first = loop.daemon.select(model="phi3:mini", wait_seconds=30).json()
    loop.daemon.delete(f"/leases/{first['lease']['id']}")

    for _ in range(5):
        given = loop.daemon.select(model="phi3:mini", wait_seconds=30).json()
        told = {"decision_id": given["decision_id"], "status": "ok", "duration_seconds": 2.0}
        assert 204 == loop.daemon.post("/outcomes", **told, prompt_tokens=50, output_tokens=100).status_code
    later = loop.daemon.select(model="phi3:mini", dry_run=True).json()

    assert (False, "medium", []) == (first["degraded"], first["confidence"], codes(first))
    assert (False, "high", []) == (later["degraded"], later["confidence"], codes(later))
    assert "prometheus" == first["snapshot"]["source"] == later["snapshot"]["source"]


def test_when_the_exporter_is_gone_readings_go_stale_and_starts_wait_until_it_is_back(loop: Loop):
    daemon = loop.daemon
    wait_for_snapshot(daemon, source="prometheus", freshness="fresh")
    wait_until_the_interval_is_known(daemon)
    ready = daemon.select(model="llama3.2:3b", wait_seconds=30).json()
    assert "ready" == ready["state"], daemon.log()
    loop.exporter.stop()

    told = wait_for_snapshot(daemon, freshness="stale")
    usable = daemon.select(wait_seconds=0)
    refused = daemon.select(model="qwen2.5:7b", wait_seconds=0)

    assert 3.0 < signals(told)[MEMORY]["age_seconds"]
    assert ("prometheus", {}) == (told["source"], told["failing"]), "Prometheus answers; it is the host that is gone"
    body = usable.json()
    assert (200, "llama3.2:3b", True, "low") == (
        usable.status_code,
        body["model"],
        body["degraded"],
        body["confidence"],
    )
    assert ["prom_stale"] == codes(body)
    assert 503 == refused.status_code
    assert "signal_unknown" == next(one["rule"] for one in refused.json()["candidates"] if one["model"] == "qwen2.5:7b")
    assert "prom_stale" in [reason["code"] for reason in refused.json()["reasons"]]
    assert {"phi3:mini": "stopped", "llama3.2:3b": "ready", "qwen2.5:7b": "stopped"} == daemon.states()

    loop.exporter.start()
    wait_for_snapshot(daemon, freshness="fresh")
    again = daemon.select(model="qwen2.5:7b", wait_seconds=30)

    assert (200, "ready", False, []) == (
        again.status_code,
        again.json()["state"],
        again.json()["degraded"],
        codes(again.json()),
    )


@pytest.mark.parametrize(
    ("enabled", "degraded"),
    [
        pytest.param("auto", False, id="never seen, not insisted on"),
        pytest.param("true", True, id="never seen, but insisted on"),
    ],
)
def test_a_prometheus_that_never_answered_is_missed_only_if_it_was_insisted_on(models_url, tmp_path, enabled, degraded):
    refusing = f"http://127.0.0.1:{pick_port()}"
    with running(tmp_path / "daemon", config(refusing, models_url, enabled=enabled, host=True)) as daemon:
        told = wait_for_snapshot(daemon, source="host", freshness="fresh")
        answer = daemon.select(model="phi3:mini", wait_seconds=30).json()

        assert ({"prometheus": "prom_unreachable"} if degraded else {}) == told["failing"]
        assert (degraded, "medium", "ready") == (answer["degraded"], answer["confidence"], answer["state"])
        assert (["prom_unreachable"] if degraded else []) == codes(answer)


def test_a_prometheus_that_was_seen_and_now_refuses_is_a_degradation_and_this_host_stands_in(
    prometheus, models_url, tmp_path
):
    door = CountingDoor(prometheus.url)
    daemon = RunningDaemon(folder=tmp_path / "daemon", config=config(door.url, models_url, enabled="auto", host=True))
    try:
        with door:
            daemon.start()
            wait_for_snapshot(daemon, source="prometheus", freshness="fresh", failing={})
            assert not daemon.select(dry_run=True).json()["degraded"]
            wait_until_the_interval_is_known(daemon)

        told = wait_for_snapshot(daemon, source="host", freshness="fresh")
        answer = daemon.select(model="phi3:mini", wait_seconds=30).json()

        assert {"prometheus": "prom_unreachable"} == told["failing"]
        assert (True, "medium", "ready") == (answer["degraded"], answer["confidence"], answer["state"])
        assert ["prom_unreachable"] == codes(answer)

        with CountingDoor(prometheus.url, door.port):
            wait_for_snapshot(daemon, source="prometheus", freshness="fresh", failing={})
            assert not daemon.select(dry_run=True).json()["degraded"]
    finally:
        daemon.stop()
