"""Memory pressure made real: a process takes memory until the big model no longer fits, as node_exporter and Prometheus
see it. The reserve is set so near to what is available that one or two GiB are enough for it on any machine."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.machine import CPU_NEVER_MATTERS, model_server
from tests.e2e.running import GIB, MIB, RunningDaemon, chain, running
from tests.realparts import RealPrometheus, eventually

QUALITY = {"task": "coding", "complexity": "complex", "prefer": "quality", "dry_run": True}
ENTER_RATIO, LEAVE_RATIO = 1.10, 1.25  # policy.memory_enter_ratio and memory_leave_ratio, as shipped
SIZE = r"[\d.]+ [GM]iB"

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.needs_node_exporter, pytest.mark.alone]


class Hog:
    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("memory_hog.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.held_bytes = 0
        self.changed_at_seconds = time.time()

    def hold(self, wanted_bytes: int) -> None:
        """Returns when it is so."""
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.popen.stdin.write(f"{wanted_bytes}\n")
        self.popen.stdin.flush()
        self.held_bytes = int(self.popen.stdout.readline())
        self.changed_at_seconds = time.time()

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()


@pytest.fixture
def hog() -> Iterator[Hog]:
    hog = Hog()
    try:
        yield hog
    finally:
        hog.end()


@dataclass(slots=True, kw_only=True)
class Host:
    """need_bytes: of qwen. The others need a quarter and a fifth of that."""

    daemon: RunningDaemon
    hog: Hog
    need_bytes: int
    reserve_bytes: int

    def snapshot(self) -> dict[str, Any]:
        told: dict[str, Any] = self.daemon.get("/snapshot").json()
        return told

    def free_bytes(self) -> float | None:
        """After the reserve, as the daemon knows it; None while it knows it from before the hog's last change."""
        told = next(one for one in self.snapshot()["signals"] if one["signal"] == "host_memory_available_bytes")
        seen_at_seconds = time.time() - told["age_seconds"]
        if seen_at_seconds < self.hog.changed_at_seconds + 0.1:
            return None
        return float(told["value"]) - self.reserve_bytes

    def bring_free_to(self, low_ratio: float, high_ratio: float) -> None:
        """Of qwen's need. Others use this machine, too: the hog makes up for what they take and give."""

        def there() -> bool | None:
            free_bytes = self.free_bytes()
            if free_bytes is None:
                return None
            if low_ratio * self.need_bytes <= free_bytes <= high_ratio * self.need_bytes:
                return True
            middle_bytes = (low_ratio + high_ratio) / 2 * self.need_bytes
            self.hog.hold(int(self.hog.held_bytes + free_bytes - middle_bytes))
            return None

        eventually(there, deadline_seconds=30, what=lambda: f"free {low_ratio}..{high_ratio}: {self.free_bytes()}")

    def decision(self) -> dict[str, Any]:
        told: dict[str, Any] = self.daemon.select(**QUALITY).json()
        return told

    def wait_for_choice(self, model: str) -> dict[str, Any]:
        return eventually(
            lambda: told if (told := self.decision())["model"] == model else None,
            deadline_seconds=30,
            what=lambda: f"{model}: {self.decision()} {self.snapshot()}",
        )

    def qwen_is_latched(self) -> bool:
        return any(name.startswith("memory_short:") and name.endswith("/qwen2.5:7b") for name in self.latches())

    def latches(self) -> list[str]:
        latches: list[str] = self.snapshot()["latches"]
        return latches


@pytest.fixture
def host(prometheus_factory: Any, node_exporter: str, hog: Hog, tmp_path: Path) -> Iterator[Host]:
    prometheus: RealPrometheus = prometheus_factory(
        [{"job_name": "node", "static_configs": [{"targets": [node_exporter]}]}]
    )
    prometheus.wait_for("rate(node_cpu_seconds_total[60s])")
    available_bytes = float(prometheus.query("node_memory_MemAvailable_bytes")[0]["value"][1])
    if available_bytes < 2 * GIB:
        pytest.skip(f"{available_bytes / GIB:.1f} GiB are available here: too little to take some of it")
    need_bytes = int(min(4 * GIB, available_bytes / 2))
    reserve_bytes = int(available_bytes - 1.6 * need_bytes)
    with model_server(tmp_path) as url:
        config = {
            "models": chain(need_bytes // 5, need_bytes // 4, need_bytes),
            "telemetry": {
                "interval": "1s",
                "host_enabled": False,
                "prometheus": {"enabled": "true", "url": prometheus.url, "timeout": "1s"},
            },
            "lifecycle": {
                "provider": "ollama",
                "ollama_url": url,
                "reserve": reserve_bytes,
                "reconcile_interval": "1s",
            },
            "policy": CPU_NEVER_MATTERS,
        }
        with running(tmp_path / "daemon", config) as daemon:
            yield Host(daemon=daemon, hog=hog, need_bytes=need_bytes, reserve_bytes=reserve_bytes)


def refusal_of_qwen(decision: dict[str, Any]) -> tuple[str, str]:
    told = next(one for one in decision["candidates"] if one["model"] == "qwen2.5:7b")
    return told["rule"], told["because"]


def bytes_of(text: str) -> float:
    """Of a size as reasons write it; they round to a tenth of a GiB."""
    value, unit = text.split()
    return float(value) * {"GiB": GIB, "MiB": MIB}[unit]


def test_the_choice_steps_down_under_pressure_stays_down_while_it_is_not_over_and_comes_back(host: Host):
    host.bring_free_to(LEAVE_RATIO + 0.02, 1.7)  # it is there without the hog, unless others took some meanwhile
    host.wait_for_choice("qwen2.5:7b")
    assert not host.qwen_is_latched()

    host.bring_free_to(0.8, 0.97)
    down = host.wait_for_choice("llama3.2:3b")
    rule, because = refusal_of_qwen(down)
    assert "memory_short" == rule
    told = re.fullmatch(rf"needs ({SIZE}), ({SIZE}) free after the reserve, short ({SIZE})", because)
    assert told is not None, because
    needed, free, short = (bytes_of(told[group]) for group in (1, 2, 3))
    assert pytest.approx(host.need_bytes, rel=0.05) == needed
    assert 0.75 * host.need_bytes <= free <= 1.02 * host.need_bytes, because
    assert pytest.approx(needed - free, abs=0.11 * GIB) == short
    assert because in down["reason"], "the sentence says why not the better one"
    assert host.qwen_is_latched()

    host.bring_free_to(ENTER_RATIO + 0.03, LEAVE_RATIO - 0.03)  # enough to begin with, not enough to begin again
    still = host.decision()
    rule, because = refusal_of_qwen(still)
    assert ("llama3.2:3b", "memory_short") == (still["model"], rule)
    safe = rf"({SIZE}) wanted to be safe after it was short, or ({SIZE}) for 5 min"
    told = re.fullmatch(rf"needs {SIZE}, ({SIZE}) free after the reserve, {safe}", because)
    assert told is not None, because
    assert host.need_bytes < bytes_of(told[3]) < bytes_of(told[1]) < bytes_of(told[2])
    assert host.qwen_is_latched()

    host.hog.hold(0)
    host.bring_free_to(LEAVE_RATIO + 0.02, 1.7)
    host.wait_for_choice("qwen2.5:7b")
    assert not host.qwen_is_latched()
