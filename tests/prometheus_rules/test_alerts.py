"""A rule, its cases and its page of the runbook come together; what is said is said to a person."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.prometheus_rules.rulefiles import CASES, PROMETHEUS, alerts, recorded

SEVERITIES = ("critical", "warning", "info")
PARTS = ("**What it means.**", "**How to see it.**", "**What to do.**")
ALERTS = alerts()
NAMES = sorted(ALERTS)
# A ratio or an average speaks for a trend only with a count beside it.
COUNTED = {
    "DispatcherTicksMissed",
    "FirstTokenSlow",
    "ErrorBudgetBurnFast",
    "ErrorBudgetBurnSlow",
    "FallbackRateHigh",
    "RetryBudgetSpent",
    "SwapStorm",
    "MemoryPressureNothingToEvict",
}


def cases() -> list[dict[str, Any]]:
    files = sorted(CASES.glob("*.yml"))
    return [case for path in files for case in yaml.safe_load(path.read_text())["tests"]]


def sections() -> dict[str, str]:
    """Heading → text, of runbook.md."""
    parts = re.split(r"^## (.+)$", (PROMETHEUS / "runbook.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_says_how_long_how_bad_what_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]

    assert "for" in rule, "nothing says how long it must last"
    assert {"severity"} == set(rule["labels"]) and rule["labels"]["severity"] in SEVERITIES
    assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
    assert f"http://127.0.0.1:11435/runbook#{name.lower()}" == rule["annotations"]["runbook_url"]
    assert "{{" in rule["annotations"]["summary"], "the summary says neither where nor how much"
    assert rule["annotations"]["summary"].endswith(".") and rule["annotations"]["description"].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_a_number_in_a_summary_is_written_for_a_person(name: str) -> None:
    values = re.findall(r"{{\s*\$value([^}]*)}}", ALERTS[name]["annotations"]["summary"])

    assert [] == [value for value in values if not re.search(r"\|\s*(humanize|printf)", value)]


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_fires_in_one_case_at_least_and_stays_quiet_in_another(name: str) -> None:
    checks = [check for case in cases() for check in case.get("alert_rule_test", ()) if check["alertname"] == name]
    firing = [check for check in checks if check.get("exp_alerts")]
    quiet_cases = [
        case["name"]
        for case in cases()
        if any(check["alertname"] == name for check in case.get("alert_rule_test", ()))
        and not any(check["alertname"] == name and check.get("exp_alerts") for check in case.get("alert_rule_test", ()))
    ]

    assert firing, "no case shows it fire"
    assert quiet_cases, "no case shows it quiet"
    for check in firing:
        for expected in check["exp_alerts"]:
            assert ALERTS[name]["labels"]["severity"] == expected["exp_labels"]["severity"]
            assert {"summary", "description", "runbook_url"} == set(expected["exp_annotations"])


def test_no_case_is_about_an_alert_that_is_not_there() -> None:
    """promtool takes a name that nobody has for an alert that is quiet."""
    named = {check["alertname"] for case in cases() for check in case.get("alert_rule_test", ())}

    assert set() == named - set(NAMES)


def test_every_alert_has_its_section_of_the_runbook_and_no_section_is_without_an_alert() -> None:
    assert NAMES == sorted(sections())


@pytest.mark.parametrize("name", NAMES)
def test_a_section_says_what_it_means_how_to_see_it_and_what_to_do(name: str) -> None:
    text = sections().get(name, "")
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]

    assert list(PARTS) == [next((part for part in PARTS if one.startswith(part)), one) for one in paragraphs]
    assert all(len(one) > len(part) + 40 for one, part in zip(paragraphs, PARTS, strict=True))


def test_links_within_the_runbook_lead_somewhere() -> None:
    links = re.findall(r"\]\(#([^)]+)\)", (PROMETHEUS / "runbook.md").read_text())

    assert links and set() == set(links) - {name.lower() for name in NAMES}


def test_what_judges_a_share_asks_for_a_count_too() -> None:
    assert COUNTED == {name for name, rule in ALERTS.items() if re.search(r">= [0-9]+(?![0-9.])", rule["expr"])}


def test_every_recording_rule_has_a_case_with_its_value() -> None:
    tested = {
        name
        for case in cases()
        for check in case.get("promql_expr_test", ())
        for name in re.findall(r"[a-zA-Z_]+:[a-zA-Z0-9_:]+", check["expr"])
        if check.get("exp_samples")
    }

    assert set() == set(recorded()) - tested


def test_inhibition_names_alerts_that_exist() -> None:
    read = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
    matchers = [
        matcher
        for rule in read["inhibit_rules"]
        for key in ("source_matchers", "target_matchers")
        for matcher in rule[key]
    ]
    named = {
        name
        for matcher in matchers
        if matcher.startswith("alertname")
        for name in re.split(r"[|]", matcher.split('"')[1])
    }

    assert named and set() == named - set(NAMES)
