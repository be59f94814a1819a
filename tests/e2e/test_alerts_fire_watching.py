"""Alerts after their faults were really caused (test_alerts_fire.py): the daemon is told what is old,
comes too late to look, and cannot keep what it would remember."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.alert_watch import NO_DOCKER, Watching
from tests.e2e.machine import Exporter
from tests.e2e.running import RunningDaemon, running
from tests.e2e.test_disk import chosen, reported
from tests.realdisk import SmallDisk
from tests.realparts import PrometheusFactory, RealPrometheus, eventually

pytestmark = [pytest.mark.slow, pytest.mark.needs_prometheus]

POLL_SECONDS = 0.5


def asking(url: str) -> dict[str, Any]:
    """A daemon that asks this Prometheus, which nothing stands in for."""
    asked = {"enabled": "true", "url": url, "timeout": f"{POLL_SECONDS}s"}
    telemetry = {"interval": f"{POLL_SECONDS}s", "host_enabled": False, "prometheus": asked}
    return {"telemetry": telemetry, "lifecycle": {"provider": "none"}}


def scraping(factory: PrometheusFactory, target: str) -> RealPrometheus:
    asked = factory([{"job_name": "node", "static_configs": [{"targets": [target]}]}])
    asked.wait_for("rate(node_cpu_seconds_total[60s])")
    return asked


@pytest.mark.needs_node_exporter
def test_a_prometheus_whose_exporter_is_gone(
    watching: Watching, prometheus_factory: PrometheusFactory, tmp_path: Path
) -> None:
    exporter = Exporter(folder=tmp_path).start()
    try:
        config = asking(scraping(prometheus_factory, exporter.address).url)
        with running(tmp_path / "daemon", config, environment=NO_DOCKER) as daemon, watching.of(daemon) as watch:
            well = f'dispatcher_degraded{{reason="prom_stale",instance="{watch.instance}"}} == 0'
            watch.prometheus.wait_for(well)
            assert [] == watch.received("DispatcherPrometheusStale")
            exporter.stop()

            watch.wait_for("DispatcherPrometheusStale", reason="prom_stale")
            assert [] == watch.received("DispatcherPrometheusUnreachable"), "it answers"
    finally:
        exporter.stop()


def test_a_machine_that_gives_the_daemon_no_time(watching: Watching, tmp_path: Path) -> None:
    config = {
        "lifecycle": {"provider": "none"},
        "telemetry": {
            "interval": f"{POLL_SECONDS}s",
            "prometheus": {"enabled": "false", "timeout": f"{POLL_SECONDS}s"},
        },
    }
    with running(tmp_path / "daemon", config, environment=NO_DOCKER) as daemon, watching.of(daemon) as watch:
        assert [] == watch.received("DispatcherTicksMissed")
        process = daemon.popen
        assert process is not None

        def starve() -> None:
            before = polls(daemon)
            process.send_signal(signal.SIGSTOP)
            time.sleep(1.8 * POLL_SECONDS)  # the fault itself: so long it does not run
            process.send_signal(signal.SIGCONT)
            eventually(lambda: polls(daemon) > before or None, deadline_seconds=10, what="it to poll again")

        one = watch.wait_for("DispatcherTicksMissed", starve)

    assert "% of the polls" in one["annotations"]["summary"]


def polls(daemon: RunningDaemon) -> int:
    return int(daemon.get("/snapshot").json()["number"])


def test_a_disk_that_is_full(watching: Watching, small_disk: SmallDisk, tmp_path: Path) -> None:
    config = {
        "lifecycle": {"provider": "rehearsal"},
        "rehearsal": {"time_scale": 0.001},
        "history": {"path": str(small_disk.path / "history.sqlite")},
    }
    with running(tmp_path / "daemon", config, environment=NO_DOCKER) as daemon, watching.of(daemon) as watch:
        assert 204 == reported(daemon, chosen(daemon))
        assert [] == watch.received("HistoryDropped")
        small_disk.fill()

        watch.wait_for("HistoryDropped", lambda: reported(daemon, chosen(daemon)))
