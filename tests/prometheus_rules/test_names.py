"""What the rules name exists: metrics, labels and the words of closed vocabularies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from exporter.catalogue import BY_NAME, CATALOGUE, Metric
from exporter.labels import NO_MODEL, OTHER
from tests.prometheus_rules.rulefiles import CASES, PROMETHEUS, Selector, alert_selectors, alerts, recorded, selectors

EXPOSITIONS = Path(__file__).parents[1] / "fixtures" / "expositions"
OF_PROMETHEUS = {"up"}
OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")
JOBS = {"prometheus", "node", "cadvisor", "dispatcher", "n8n", "alertmanager"}
EXPRESSIONS = {name: rule["expr"] for name, rule in alerts().items()} | recorded()
OF_TARGETS = {"instance", "job"}


def ours() -> dict[str, Metric]:
    """Every series name of the catalogue."""
    names = {metric.name: metric for metric in CATALOGUE if metric.kind != "histogram"}
    histograms = [metric for metric in CATALOGUE if metric.kind == "histogram"]
    return names | {metric.name + suffix: metric for metric in histograms for suffix in OF_A_HISTOGRAM}


def captured() -> set[str]:
    """Names of series in captures of real expositions: cAdvisor's and n8n's."""
    text = "".join(path.read_text() for path in sorted(EXPOSITIONS.glob("*.prom")))
    return set(re.findall(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)[{ ]", text, flags=re.MULTILINE))


def of_node_exporter() -> set[str]:
    """Of a real one on Linux 6.1; the last but one test here asks the one that is installed."""
    return {
        "node_cpu_seconds_total",
        "node_memory_MemAvailable_bytes",
        "node_memory_MemTotal_bytes",
        "node_pressure_memory_waiting_seconds_total",
        "node_pressure_memory_stalled_seconds_total",
        "node_pressure_cpu_waiting_seconds_total",
    }


def named() -> Iterator[tuple[str, Selector]]:
    for rule, expr in EXPRESSIONS.items():
        for selector in selectors(expr):
            yield rule, selector


def test_selectors_are_read_out_of_an_expression() -> None:
    fraction = 'max by (a, b) (x{le="1}",m=~"p|q"} offset 1h) / on (c) group_left () (y > 0)'
    expr = fraction + " and sum(rate(z_total[5m])) unless l:m:n"

    assert ['x{le="1}",m=~"p|q"}', "y", "z_total", "l:m:n"] == [str(one) for one in selectors(expr)]


def test_what_alerts_rest_on_can_be_asked_for() -> None:
    asked = alert_selectors()

    assert set(alerts()) == set(asked) and all(asked.values())
    assert ('up{job=~"node|cadvisor"}',) == asked["ExporterDown"]


@pytest.mark.parametrize("rule", sorted(EXPRESSIONS))
def test_every_metric_of_a_rule_exists(rule: str) -> None:
    known = set(ours()) | set(recorded()) | OF_PROMETHEUS | captured() | of_node_exporter()

    assert set() == {selector.metric for selector in selectors(EXPRESSIONS[rule])} - known


@pytest.mark.parametrize("rule", sorted(EXPRESSIONS))
def test_labels_of_our_metrics_exist_and_their_words_are_of_their_vocabulary(rule: str) -> None:
    catalogue = ours()
    for selector in selectors(EXPRESSIONS[rule]):
        metric = catalogue.get(selector.metric)
        for label, operator, value in selector.matchers if metric else ():
            assert metric is not None
            vocabulary = next((one for one in metric.labels if one.name == label), None)
            assert vocabulary is not None, f"{selector}: {metric.name} has no label {label}"
            words = vocabulary.values if vocabulary.values is not None else (OTHER, NO_MODEL)
            wanted = value.split("|") if operator in ("=~", "!~") else [value]
            assert set() == set(wanted) - set(words), f"{selector}: no such {label}"


@pytest.mark.parametrize("rule", sorted(EXPRESSIONS))
def test_labels_that_are_kept_or_joined_on_exist(rule: str) -> None:
    """A misspelt label in by() is empty, and groups what it should keep apart."""
    catalogue, expr = ours(), EXPRESSIONS[rule]
    lists = re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", expr)
    kept = {label.strip() for one in lists for label in one.split(",") if label.strip()}
    known = OF_TARGETS | {"le", "name"}
    for selector in selectors(expr):
        if (metric := catalogue.get(selector.metric)) is not None:
            known |= set(metric.label_names)
        elif selector.metric in recorded():
            known |= set(selector.metric.partition(":")[0].split("_"))

    assert set() == kept - known


@pytest.mark.parametrize("rule", sorted(recorded()))
def test_a_recorded_name_is_level_metric_operations_and_its_level_is_what_is_kept(rule: str) -> None:
    level, metric, operations = rule.split(":")
    expr = recorded()[rule]
    first = re.search(r"\bby \(([^)]*)\)", expr)

    assert level and metric and operations
    if first is not None:
        assert level.split("_") == [label for label in first[1].split(", ") if label != "le"]
    else:
        assert level == next(iter(selectors(expr))).metric.partition(":")[0]


@pytest.mark.parametrize("rule", sorted(recorded()))
def test_nothing_is_divided_by_what_may_be_zero(rule: str) -> None:
    expr = recorded()[rule]
    divisors = re.findall(r" / (\(?.*)$", expr)

    assert all(divisor.rstrip().endswith("> 0)") for divisor in divisors)


def test_jobs_are_those_of_our_prometheus() -> None:
    read = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in read["scrape_configs"]}
    matched = {
        job
        for _, selector in named()
        for label, _, value in selector.matchers
        if label == "job"
        for job in value.split("|")
    }

    assert set(jobs) == JOBS
    assert matched and set() == matched - JOBS
    assert jobs["cadvisor"]["honor_timestamps"] is False


def test_every_series_of_the_cases_could_be_real() -> None:
    """A case about a metric, or a label's word, that nobody exposes proves nothing."""
    known = set(ours()) | OF_PROMETHEUS | captured() | of_node_exporter()
    series = {
        one["series"]
        for path in CASES.glob("*.yml")
        for case in yaml.safe_load(path.read_text())["tests"]
        for one in case["input_series"]
    }
    for text in series:
        (selector,) = selectors(text)
        assert selector.metric in known, text
        if (metric := ours().get(selector.metric)) is None:
            continue
        given = {label: value for label, _, value in selector.matchers}
        with_le = {"le"} if selector.metric.endswith("_bucket") else set()
        assert {*metric.label_names, "instance"} | with_le == set(given), text
        for label in metric.labels:
            assert label.values is None or given[label.name] in label.values, text
        if with_le:
            assert given["le"] == "+Inf" or float(given["le"]) in metric.buckets, text


@pytest.mark.needs_node_exporter
def test_the_node_exporter_that_is_installed_has_the_names(node_exporter: str) -> None:
    text = httpx.get(f"http://{node_exporter}/metrics", timeout=10, trust_env=False).text
    there = set(re.findall(r"^(node_\w+)[{ ]", text, flags=re.MULTILINE))
    pressure = {name for name in of_node_exporter() if "_pressure_" in name}  # a kernel without PSI has none

    assert set() == of_node_exporter() - there - pressure


def test_the_runbook_names_metrics_that_exist() -> None:
    text = (PROMETHEUS / "runbook.md").read_text()
    words = set(
        re.findall(r"[a-z_]+:[a-z_]+:[a-z0-9_]+|(?<![:\w])(?:ollama|dispatcher|node|container)_[a-zA-Z_]+", text)
    )
    known = set(ours()) | set(BY_NAME) | set(recorded()) | captured() | of_node_exporter() | {"node_exporter"}

    assert set() == words - known
