"""Alerts after their faults were really caused (test_alerts_fire.py): answers that begin late, and a few that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.alert_watch import Watching, asking_until
from tests.e2e.gateway_house import API_STREAM, PHI, house
from tests.misconduct import refuses, slow

pytestmark = [pytest.mark.slow, pytest.mark.needs_prometheus]


async def test_a_model_whose_first_token_is_late(watching: Watching, tmp_path: Path) -> None:
    patient = {"timeouts": {"first_token_min": "60s", "first_token_max": "90s", "total": "90s"}}
    with house(tmp_path / "house", patient) as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("FirstTokenSlow")

        await asking_until(
            there, lambda: watch.wait_for("FirstTokenSlow", model=PHI), {PHI: slow(11)}, way=API_STREAM, at_once=40
        )


async def test_one_request_in_ten_failing(watching: Watching, tmp_path: Path) -> None:
    with house(tmp_path / "house") as there, watching.of(there.daemon) as watch:
        assert [] == watch.received("ErrorBudgetBurnSlow")

        one = await asking_until(
            there,
            lambda: watch.wait_for("ErrorBudgetBurnSlow"),
            {"*": refuses(500)},
            every=10,
            headers={"X-Dispatcher-Fallback": "off"},
        )

        assert [] == watch.received("ErrorBudgetBurnFast"), "that is for 14.4 % and more"
    assert "last six hours" in one["annotations"]["summary"]
