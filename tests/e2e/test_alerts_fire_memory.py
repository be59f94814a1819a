"""Alerts after their faults were really caused (test_alerts_fire.py): memory that is short, lost to swapping, or held
for nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.alert_watch import NO_DOCKER, Watching
from tests.e2e.machine import CPU_NEVER_MATTERS, model_server
from tests.e2e.running import MIB, RunningDaemon, chain, running
from tests.e2e.test_memory_pressure import Host, hog, host

__all__ = ["hog", "host"]  # fixtures: a process that takes memory, and a daemon whose reserve is near what is available

pytestmark = [pytest.mark.slow, pytest.mark.needs_prometheus]

LLAMA, QWEN = "llama3.2:3b", "qwen2.5:7b"


@contextmanager
def room_for_one(folder: Path) -> Iterator[RunningDaemon]:
    """A shared model server, where any one of the models fits and no two of them do; a load takes a second."""
    with model_server(folder, load_seconds=1.0) as url:
        lifecycle = {
            "provider": "ollama",
            "ollama_url": url,
            "capacity": 1000 * MIB,
            "reserve": 100 * MIB,
            "idle": "1h",
            "dwell": "0s",
            "reconcile_interval": "0.5s",
        }
        config = {
            "models": chain(500 * MIB, 500 * MIB, 500 * MIB),
            "telemetry": {"interval": "1s", "prometheus": {"enabled": "false", "timeout": "1s"}},
            "lifecycle": lifecycle,
            "policy": CPU_NEVER_MATTERS,
        }
        with running(folder / "daemon", config, environment=NO_DOCKER) as daemon:
            yield daemon


def brought_up(daemon: RunningDaemon, model: str) -> None:
    answer = daemon.post(f"/models/{model}/start")
    assert 202 == answer.status_code, answer.text
    daemon.wait_for_state(model, "ready")


def taken_down(daemon: RunningDaemon, model: str) -> None:
    answer = daemon.post(f"/models/{model}/stop")
    assert 202 == answer.status_code, answer.text
    daemon.wait_for_state(model, "stopped")


@pytest.mark.alone
@pytest.mark.needs_node_exporter
def test_a_process_that_takes_the_memory_while_no_model_runs(watching: Watching, host: Host) -> None:
    daemon = host.daemon
    with watching.of(daemon) as watch:
        host.bring_free_to(0.5, 1.7)
        assert 200 == daemon.select(dry_run=True).status_code
        assert [] == watch.received("MemoryPressureNothingToEvict")

        def ask_with_little_left() -> None:
            host.bring_free_to(-0.05, 0.12)  # of what qwen needs; phi needs a fifth of that
            answer: Any = daemon.select(wait_seconds=0)
            assert 503 == answer.status_code, answer.text

        watch.wait_for("MemoryPressureNothingToEvict", ask_with_little_left)


def test_two_models_of_which_one_fits_and_both_are_wanted(watching: Watching, tmp_path: Path) -> None:
    """By hand, as a script does that starts what it needs: of its own accord the daemon lets each rest for three times
    its load, and so stays below a quarter of the time."""
    with room_for_one(tmp_path) as daemon, watching.of(daemon) as watch:
        assert [] == watch.received("SwapStorm")

        def swap() -> None:
            for model in (LLAMA, QWEN):
                brought_up(daemon, model)
                taken_down(daemon, model)

        watch.wait_for("SwapStorm", swap)


def test_a_model_that_is_started_again_and_again(watching: Watching, tmp_path: Path) -> None:
    with room_for_one(tmp_path) as daemon, watching.of(daemon) as watch:
        assert [] == watch.received("ModelFlapping")

        def start_and_stop() -> None:
            brought_up(daemon, QWEN)
            taken_down(daemon, QWEN)

        one = watch.wait_for("ModelFlapping", start_and_stop, model=QWEN)

    assert one["labels"]["place"].startswith("ollama:")


def test_a_model_that_is_pinned_and_that_nobody_uses(watching: Watching, tmp_path: Path) -> None:
    config = {
        "lifecycle": {"provider": "rehearsal", "reconcile_interval": "1s"},
        "rehearsal": {"time_scale": 0.001, "host_memory": "24GiB"},
        "telemetry": {"interval": "1s", "prometheus": {"enabled": "false", "timeout": "1s"}},
    }
    with running(tmp_path / "daemon", config, environment=NO_DOCKER) as daemon, watching.of(daemon) as watch:
        assert [] == watch.received("IdleMemoryHeld")
        assert 202 == daemon.post(f"/models/{QWEN}/pin").status_code
        daemon.wait_for_state(QWEN, "ready")

        one = watch.wait_for("IdleMemoryHeld")

    assert "GiB" in one["annotations"]["summary"]
