"""The dashboards on the live stack: every query of every panel is answered, and with something."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.stack import PROMETHEUS, Stack
from tests.grafana_dashboards.boards import (
    Query,
    annotation_queries,
    boards,
    foreign_names,
    metric_names,
    panel_queries,
    substituted,
    variables,
)
from tests.realparts import eventually

DEADLINE_SECONDS = 60.0
RANGE_SECONDS = 300
pytestmark = [pytest.mark.needs_prometheus, pytest.mark.needs_node_exporter]


# One for all: a client of its own per query would read the certificate store each time.
_client = httpx.Client(timeout=20, trust_env=False, verify=False)


def asked(stack: Stack, path: str, **fields: Any) -> list[dict[str, Any]]:
    """Whatever is not a 200 fails, with what Prometheus says of it."""
    answer = _client.post(f"{stack.prometheus.url}/api/v1/{path}", data=fields)
    assert 200 == answer.status_code, f"{fields}: {answer.text}"
    rows: list[dict[str, Any]] = answer.json()["data"]["result"]
    return rows


def values(stack: Stack, expr: str) -> list[float]:
    """Of an instant query. NaN is no value."""
    found = [float(row["value"][1]) for row in asked(stack, "query", query=expr)]
    return [value for value in found if not math.isnan(value)]


def absent_for_a_reason(stack: Stack, query: Query) -> str | None:
    """Why this machine cannot show it: a job that is left out, or a kernel without PSI."""
    names = metric_names(query.expr)
    for job, prefix in (("n8n", "n8n_"), ("cadvisor", "container_")):
        if not stack.has(job) and any(name.startswith(prefix) for name in names):
            return f"no {job}"
    pressure = any(re.match(r"node_pressure_|instance:node_pressure_", name) for name in names)
    return "no PSI" if pressure and not stack.prometheus.query("node_pressure_cpu_waiting_seconds_total") else None


def until_none_is_empty(stack: Stack, queries: Mapping[Query, str]) -> None:
    """queries: as they are asked. Again only what is missing: rules and rates need some scrapes."""
    left = {query: expr for query, expr in queries.items() if absent_for_a_reason(stack, query) is None}

    def look() -> bool | None:
        nonlocal left
        left = {query: expr for query, expr in left.items() if not values(stack, expr)}
        return not left or None

    eventually(look, deadline_seconds=DEADLINE_SECONDS, what=lambda: "\n".join(map(str, left)))


def test_every_query_of_every_panel_is_answered_with_something(live_stack: Stack):
    queries = {query: substituted(query.expr) for query in panel_queries()}

    assert len(queries) > 100
    until_none_is_empty(live_stack, queries)


def test_every_query_is_answered_for_one_model_and_one_host_too(live_stack: Stack):
    (host,) = {row["metric"]["instance"] for row in asked(live_stack, "query", query="node_memory_MemTotal_bytes")}
    one = {"model": "llama3\\\\.2:3b", "host": host.replace(".", "\\\\.")}  # as Grafana writes them

    until_none_is_empty(live_stack, {query: substituted(query.expr, one) for query in panel_queries()})


def test_every_query_of_a_graph_is_answered_for_a_range(live_stack: Stack):
    """As Grafana asks it; a range refuses some things that an instant allows."""
    now = time.time()
    for query in [*panel_queries(), *annotation_queries()]:
        asked(live_stack, "query_range", query=substituted(query.expr), start=now - RANGE_SECONDS, end=now, step=15)


def test_the_variables_offer_what_there_is(live_stack: Stack):
    for board in boards().values():
        for name, variable in variables(board).items():
            if variable["type"] != "query":
                continue
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert match is not None, variable["query"]
            offered = {row["metric"][match[2]] for row in asked(live_stack, "query", query=match[1])}
            pattern = variable["regex"].strip("/")
            kept = {value for value in offered if re.search(pattern, value)}
            assert kept, f"{board['title']}: {name}"
            if name == "model":
                assert {"phi3:mini", "llama3.2:3b", "qwen2.5:7b"} == kept


def test_the_annotations_mark_starts_and_stops(live_stack: Stack):
    seen = {
        query.panel: query.expr.partition(" > 0")[0].replace("increase", "").replace("[1m]", "")
        for query in annotation_queries()
    }

    assert {"annotation Starts", "annotation Stops"} == set(seen)
    for query in annotation_queries():
        asked(live_stack, "query", query=substituted(query.expr))
    for total in seen.values():
        assert any(value > 0 for value in values(live_stack, substituted(total))), total


def test_what_only_a_fault_fills_is_counted_from_before_it(live_stack: Stack):
    """Nothing must never look like fine, so what has not happened is 0 from the start."""
    for expr in (
        'max(dispatcher_model_state{state="quarantined"})',
        "max(dispatcher_breaker_state)",
        'sum(increase(dispatcher_errors_total{error_type="oom_killed"}[1m]))',
        "sum(dispatcher_history_dropped_total)",
    ):
        assert [0.0] == values(live_stack, expr), expr


def left_hand_sides(expr: str) -> list[str]:
    """The operands of an alert without what they are compared with: each side of its and/or/unless by itself, for a
    side that is never there never fires, or never holds back. absent() is there when nothing else is."""
    parts = re.split(r"\b(?:and|or|unless)\b(?:\s+(?:on|ignoring)\s*\([^)]*\))?", expr)
    sides = [re.split(r"\s(?:==|!=|>=|<=|>|<)\s", part)[0].strip() for part in parts]
    return [unparenthesised(side) for side in sides if not side.startswith("absent(")]


def unparenthesised(side: str) -> str:
    """A parenthesis that opens here and closes in another operand is dropped."""
    while side.startswith("(") and side.count("(") > side.count(")"):
        side = side[1:].strip()
    while side.endswith(")") and side.count(")") > side.count("("):
        side = side[:-1].strip()
    return side


def test_the_left_hand_side_of_every_alert_is_there_before_it_fires(live_stack: Stack):
    rules = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())
    alerts = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    queries = {
        Query(board="alerts", panel=alert, expr=side): side
        for alert, expr in alerts.items()
        for side in left_hand_sides(expr)
        if not metric_names(side) & ONLY_WHEN_DECLARED
    }

    assert len(alerts) > 15
    until_none_is_empty(live_stack, queries)


# Without experiments there is no label set that could start at 0.
ONLY_WHEN_DECLARED = {"dispatcher_experiment_rollbacks_total", "dispatcher_experiment_samples_total"}


def test_everything_the_dashboards_know_of_node_exporter_it_exposes(live_stack: Stack):
    kept = [name for name in sorted(foreign_names()) if name.startswith("node_") and "pressure" not in name]
    used = {name for query in panel_queries() for name in metric_names(query.expr)}

    assert [] == [name for name in kept if name in used and not values(live_stack, name)]


def test_no_job_of_our_prometheus_yml_is_unknown_to_the_stack(live_stack: Stack):
    """What is left out is optional, and would be said."""
    assert {"alertmanager", "n8n"} >= set(live_stack.left_out)
