"""No alert is left out of the tests that cause its fault. They are opt-in (`slow`); this one always runs."""

from __future__ import annotations

import re
from pathlib import Path

from tests.prometheus_rules.rulefiles import alerts


def test_every_alert_is_driven_by_its_fault() -> None:
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_alerts_fire*.py")]

    driven = {name for source in sources for name in re.findall(r'wait_for\(\s*"([A-Z]\w+)"', source)}

    assert set(alerts()) == driven
