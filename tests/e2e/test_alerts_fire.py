"""Alerts after their faults were really caused: a real daemon, a real Prometheus with our rules, a real Alertmanager
that receives them. Here: those of watching and of requests; test_alerts_fire_*.py have the others.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.alert_watch import (
    NO_DOCKER,
    PATIENCE_SECONDS,
    Watching,
    asking_until,
    shortened,
    shortened_expression,
    shortened_for,
)
from tests.e2e.captures import CaptureServer
from tests.e2e.gateway_house import PHI, QUICK, QWEN, house
from tests.e2e.running import running
from tests.misbehaving import CHAIN
from tests.misconduct import hangs_up, refuses, silent
from tests.realparts import PrometheusFactory, eventually

pytestmark = [pytest.mark.slow, pytest.mark.needs_prometheus]


def test_rules_are_shortened_as_said() -> None:
    assert "rate(x[5s]) and increase(y[15s]) * 60 > 1" == shortened_expression(
        "rate(x[5m]) and increase(y[15m]) * 3600 > 1"
    )
    assert ["3s", "270s", "0s"] == [shortened(duration) for duration in ("1m", "4h30m", "0m")]
    assert ["3s", "5s", "30s", "0s"] == [shortened_for(duration) for duration in ("1m", "5m", "4h30m", "0m")]


def test_a_dispatcher_that_is_killed(watching: Watching, tmp_path: Path) -> None:
    with house(tmp_path / "house") as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("DispatcherDown")
        there.daemon.kill()

        watch.wait_for("DispatcherDown", job="dispatcher", instance=f"127.0.0.1:{there.daemon.exporter_port}")


def test_an_exporter_that_is_gone(watching: Watching) -> None:
    with ExitStack() as exporter:
        address = exporter.enter_context(CaptureServer("container_last_seen 1\n")).address
        with watching.over("cadvisor", address) as watch:
            assert [] == watch.received("ExporterDown")
            exporter.close()

            watch.wait_for("ExporterDown", job="cadvisor", instance=address)


def test_a_prometheus_that_is_paused_and_nothing_that_stands_in(
    watching: Watching, prometheus_factory: PrometheusFactory, node_exporter: str, tmp_path: Path
) -> None:
    asked = prometheus_factory([{"job_name": "node", "static_configs": [{"targets": [node_exporter]}]}])
    asked.wait_for("node_memory_MemAvailable_bytes")
    config = {
        "telemetry": {
            "interval": "1s",
            "host_enabled": False,
            "prometheus": {"url": asked.url, "timeout": "800ms"},
        },
        "policy": {"blind_after": "5s"},
        "lifecycle": {"provider": "none"},
    }
    with running(tmp_path / "daemon", config, environment=NO_DOCKER) as daemon, watching.of(daemon) as watch:
        age = f'dispatcher_signal_age_seconds{{signal="host_memory_available_bytes",instance="{watch.instance}"}}'
        watch.prometheus.wait_for(age)
        assert [] == watch.received("DispatcherPrometheusUnreachable") + watch.received("DispatcherBlind")
        asked.pause()

        watch.wait_for("DispatcherPrometheusUnreachable", reason="prom_unreachable")
        watch.wait_for("DispatcherBlind")


def test_a_configuration_that_is_broken(watching: Watching, tmp_path: Path) -> None:
    with house(tmp_path / "house") as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("DispatcherConfigReloadFailed")
        (there.daemon.folder / "dispatcher.yaml").write_text("policy: {margin: no number}\n")

        watch.wait_for("DispatcherConfigReloadFailed")


def test_an_engine_that_is_gone(watching: Watching, tmp_path: Path) -> None:
    with house(tmp_path / "house") as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("DispatcherEngineUnreachable")
        there.server.stop()

        watch.wait_for("DispatcherEngineUnreachable")


def test_a_model_that_fails_to_load_again_and_again(watching: Watching, tmp_path: Path) -> None:
    loaded = dict.fromkeys((model for model in CHAIN if model != QWEN), 4096)
    with (
        house(tmp_path / "house", loaded=loaded, loading={QWEN: refuses(500, "broken weights")}) as there,
        watching.of(there.daemon) as watch,
    ):
        assert [] == watch.received("ModelQuarantined")

        def quarantined() -> bool | None:
            state = there.daemon.states()[QWEN]
            if state == "stopped":  # a start by hand would also end the quarantine
                there.daemon.post(f"/models/{QWEN}/start")
            return state == "quarantined" or None

        eventually(quarantined, deadline_seconds=PATIENCE_SECONDS, what=lambda: f"quarantine\n{there.daemon.log()}")

        watch.wait_for("ModelQuarantined", model=QWEN)


async def test_a_queue_that_fills(watching: Watching, tmp_path: Path) -> None:
    patient = {
        "timeouts": {"first_token_min": "2m", "first_token_max": "3m"},
        "queue": {"normal_entries": 4, "normal_wait": "3m"},
    }
    with house(tmp_path / "house", patient, num_parallel=1) as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("QueueSaturated")
        one = await asking_until(
            there, lambda: watch.wait_for("QueueSaturated", priority="normal"), {"*": silent()}, at_once=5
        )

    assert "100% full" in one["annotations"]["summary"]


async def test_a_model_that_is_moved_away_from(watching: Watching, tmp_path: Path) -> None:
    with house(tmp_path / "house") as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("FallbackRateHigh")

        await asking_until(there, lambda: watch.wait_for("FallbackRateHigh"), {PHI: refuses(503)})


async def test_a_model_whose_connections_break(watching: Watching, tmp_path: Path) -> None:
    with house(tmp_path / "house") as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("RetryBudgetSpent")

        await asking_until(
            there,
            lambda: watch.wait_for("RetryBudgetSpent"),
            {PHI: hangs_up(reset=True)},
            at_once=8,
            headers={"X-Dispatcher-Fallback": "off"},
        )


async def test_every_model_failing(watching: Watching, tmp_path: Path) -> None:
    with house(tmp_path / "house", {**QUICK, "breaker": {}}) as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("ErrorBudgetBurnFast") + watch.received("AllModelsUnhealthy")

        def both() -> None:
            watch.wait_for("ErrorBudgetBurnFast")
            watch.wait_for("AllModelsUnhealthy")

        await asking_until(there, both, {"*": refuses(500)})
