"""An alert after its fault was really caused (test_alerts_fire.py): an experiment whose B answers with errors, so that
its guardrail breaks and it is rolled back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.alert_watch import Watching
from tests.e2e.running import running
from tests.e2e.test_experiments import CONFIG, NO_DOCKER, begun, told, used, used_often

pytestmark = [pytest.mark.slow, pytest.mark.needs_prometheus]


def test_an_experiment_that_is_rolled_back(watching: Watching, tmp_path: Path) -> None:
    with running(tmp_path / "daemon", CONFIG, environment=NO_DOCKER) as daemon, watching.of(daemon) as watch:
        begun(daemon, "margin")
        used_often(daemon, 20)
        watch.prometheus.wait_for('dispatcher_experiment_samples_total{experiment="margin",arm="B"} > 0')
        assert [] == watch.received("ExperimentRolledBack")
        while told(daemon, "margin")["phase"] == "running":
            used_often(daemon, 20, failing="B")

        one = watch.wait_for("ExperimentRolledBack", lambda: used(daemon), experiment="margin")

        assert one["annotations"]["summary"].startswith("An arm of the experiment margin was switched off (")
