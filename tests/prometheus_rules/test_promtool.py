"""Prometheus' and Alertmanager's own tools on our files: configurations, rules, and what rules say of given series."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.attendance import unavailable
from tests.prometheus_rules.rulefiles import CASES, PROMETHEUS, RULES

SECONDS = 240  # a deadline; the longest takes 10 s when idle


@pytest.fixture
def promtool(request: pytest.FixtureRequest) -> str:
    return shutil.which("promtool") or unavailable(request.config, "Prometheus", "promtool is not installed")


@pytest.fixture
def amtool(request: pytest.FixtureRequest) -> str:
    return shutil.which("amtool") or unavailable(request.config, "Alertmanager", "amtool is not installed")


def said(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.returncode, done.stdout + done.stderr


def test_prometheus_would_take_our_configuration(promtool: str) -> None:
    status, words = said(promtool, "check", "config", PROMETHEUS / "prometheus.yml")

    assert (0, "") == (status, "" if status == 0 else words)
    assert all(path.name in words for path in RULES.glob("*.yml")), "rule_files does not name every rule file"


@pytest.mark.parametrize("path", sorted(RULES.glob("*.yml")), ids=lambda path: path.stem)
def test_the_rules_are_rules_and_none_is_there_twice(promtool: str, path: Path) -> None:
    status, words = said(promtool, "check", "rules", "--lint=all", "--lint-fatal", path)

    assert (0, "") == (status, "" if status == 0 else words)


@pytest.mark.parametrize("path", sorted(CASES.glob("*.yml")), ids=lambda path: path.stem)
def test_the_rules_say_what_their_cases_expect(promtool: str, path: Path) -> None:
    status, words = said(promtool, "test", "rules", path)

    assert (0, "") == (status, "" if status == 0 else words)


def test_alertmanager_would_take_our_configuration(amtool: str) -> None:
    status, words = said(amtool, "check-config", PROMETHEUS / "alertmanager.yml")

    assert (0, "") == (status, "" if status == 0 else words)


def route_of(amtool: str, *labels: str) -> str:
    status, words = said(
        amtool, "config", "routes", "test", f"--config.file={PROMETHEUS / 'alertmanager.yml'}", *labels
    )
    assert (0, "") == (status, "" if status == 0 else words)
    return words.splitlines()[0]  # the second warns of --config.file


@pytest.mark.parametrize("severity", ["critical", "warning", "info"])
def test_as_it_comes_nobody_outside_is_told(amtool: str, severity: str) -> None:
    assert "nobody" == route_of(amtool, "alertname=ModelQuarantined", f"severity={severity}")
