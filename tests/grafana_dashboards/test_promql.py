"""What PromQL allows and nobody means: rates of gauges, sums of bare counters, quantiles without their buckets, legends
that tell nothing apart, units of something else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import pytest
import yaml

from exporter.catalogue import BY_NAME, CATALOGUE
from exporter.labels import NO_MODEL, OTHER
from tests.e2e.stack import EXPOSITIONS, PROMETHEUS
from tests.grafana_dashboards.boards import (
    ALL,
    PROVISIONING,
    Query,
    annotation_queries,
    boards,
    panel_queries,
    panels,
    substituted,
    variables,
)
from tests.prometheus_rules.rulefiles import Selector, alerts, recorded, selectors

RATES = ("rate", "increase")
ALSO_OF_COUNTERS = ("count_over_time", "absent")  # whether it is there, not how far it counted
KERNELS_COUNTERS = {"node_vmstat_oom_kill"}  # node_exporter does not say of /proc/vmstat what counts
# An experiment's first rollback makes its series, so the alert asks how far it counted.
BARE_FOR_A_REASON = {"dispatcher_experiment_rollbacks_total"}


def asked() -> Iterator[Query]:
    yield from panel_queries()
    yield from annotation_queries()
    for name, expr in ({name: rule["expr"] for name, rule in alerts().items()} | recorded()).items():
        yield Query(board="rules", panel=name, expr=expr)


def counters() -> set[str]:
    """As Prometheus has them: of a histogram its three."""
    kinds = {metric.name: metric.kind for metric in CATALOGUE}
    for path in EXPOSITIONS.glob("*.prom"):
        kinds |= dict(re.findall(r"^# TYPE (\S+) (\w+)$", path.read_text(encoding="utf-8"), re.M))
    grown = {name for name, kind in kinds.items() if kind == "counter"} | KERNELS_COUNTERS
    grown |= {name for name in (EXPOSITIONS / "node_names.txt").read_text().split() if name.endswith("_total")}
    return grown.union(
        *({f"{name}_{part}" for part in ("bucket", "count", "sum")} for name in kinds if kinds[name] == "histogram")
    )


def under(expr: str) -> Iterator[tuple[str, str]]:
    """(metric, the function it is directly in, or nothing) of each selector of an expression."""
    for selector in selectors(expr):
        for match in re.finditer(rf"(?:(\w+)\s*\(\s*)?(?<![\w:]){re.escape(selector.metric)}(?![\w:])", expr):
            yield selector.metric, match[1] or ""


def test_only_counters_have_rates_and_counters_have_nothing_else() -> None:
    known, wrong = counters(), []
    for query in asked():
        for metric, function in under(query.expr):
            if metric in known and function not in (*RATES, *ALSO_OF_COUNTERS) and metric not in BARE_FOR_A_REASON:
                wrong.append(f"{query}: {metric} counts for ever, and is not in rate() or increase()")
            if metric not in known and function in RATES:
                wrong.append(f"{query}: {metric} is no counter")

    assert [] == wrong


def test_a_quantile_keeps_the_edges_of_the_buckets() -> None:
    quantiles = [query for query in asked() if "histogram_quantile" in query.expr]

    assert quantiles
    for query in quantiles:
        inside = re.findall(r"histogram_quantile\([0-9.]+, sum by \(([^)]*)\) \(rate\(\w+_bucket\b", query.expr)
        assert query.expr.count("histogram_quantile") == len(inside), f"{query}: not sum by (…) (rate(…_bucket"
        assert all("le" in labels.split(", ") for labels in inside), f"{query}: without le"


def shares(expr: str) -> bool:
    return " / " in expr or re.search(r"ratio|_pressure_|cpu_some", expr) is not None


OF_A_UNIT: Mapping[str, Callable[[str], bool]] = {
    "s": lambda expr: "_seconds" in expr,
    "bytes": lambda expr: "_bytes" in expr,
    "percentunit": shares,
    "ops": lambda expr: "rate" in expr,
    "reqps": lambda expr: "rate" in expr,
    "suffix: tok/s": lambda expr: "_tokens" in expr,
    "suffix: cores": lambda expr: "cores" in expr,
}


def test_a_unit_is_that_of_the_metric() -> None:
    wrong = []
    for name, board in boards().items():
        for panel in panels(board):
            unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
            for target in panel.get("targets", []):
                if unit in OF_A_UNIT and not OF_A_UNIT[unit](target["expr"]):
                    wrong.append(f"{name}: {panel['title']}: {unit} of {target['expr']}")

    assert [] == wrong


def grouped_by(expr: str) -> set[str]:
    lists = re.findall(r"\b(?:by|on) \(([^)]*)\)", expr)
    return {label for one in lists for label in re.split(r",\s*", one) if label}


def kept(expr: str) -> set[str] | None:
    """Labels of what a query answers; None when nothing is summed away."""
    if not re.search(r"\b(?:sum|max|min|avg)\b", expr):
        return None
    return grouped_by(expr) | set(re.findall(r'label_replace\(.*, "(\w+)", "', expr))


def test_a_legend_names_labels_that_are_left_and_the_host_where_it_is() -> None:
    wrong = []
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel.get("targets", []):
                told, left = set(re.findall(r"{{(\w+)}}", target["legendFormat"])), kept(target["expr"])
                if left is None and "instance" not in told:
                    wrong.append(f"{name}: {panel['title']}: {target['expr']}: two hosts would look the same")
                if left is not None and told - left:
                    wrong.append(f"{name}: {panel['title']}: {target['expr']}: no {told - left} is left")

    assert [] == wrong


def labels_of(selector: Selector) -> set[str] | None:
    if selector.metric in recorded():
        return set(selector.metric.partition(":")[0].split("_"))
    name = re.sub(r"_(bucket|count|sum)$", "", selector.metric)
    metric = BY_NAME.get(selector.metric) or BY_NAME.get(name)
    return None if metric is None else {*metric.label_names, "instance", "job", "le"}


def test_what_is_grouped_by_or_asked_for_is_a_label_of_what_is_asked() -> None:
    wrong = []
    for query in [*panel_queries(), *annotation_queries()]:
        asked_of = [(one, labels) for one in selectors(substituted(query.expr)) if (labels := labels_of(one))]
        if not asked_of:
            continue  # nothing of ours: the live stack tells
        known = {"name"}.union(*(labels for _, labels in asked_of))
        wrong += [f"{query}: {label}" for label in grouped_by(query.expr) - known]
        for selector, labels in asked_of:
            wrong += [f"{query}: {selector}: {label}" for label, _, _ in selector.matchers if label not in labels]

    assert [] == wrong


@pytest.mark.parametrize("name", ["model", "host"])
def test_all_of_a_variable_is_what_it_offers_and_nothing_else(name: str) -> None:
    """`_other` and `_none` are no models: only the panels that want them name them."""
    found = [variables(board)[name] for board in boards().values() if name in variables(board)]

    assert found
    for variable in found:
        assert ALL[name] == variable["allValue"]
        for value in ("phi3:mini", "llama3.2:3b", "node-exporter:9100", OTHER, NO_MODEL):
            offered = re.search(variable["regex"].strip("/"), value) is not None
            assert offered == (re.fullmatch(variable["allValue"], value) is not None), f"{value}: {variable['regex']}"


def test_grafana_knows_the_longest_time_between_two_scrapes() -> None:
    """$__rate_interval is four times that, at least: a shorter one leaves gaps in what is scraped seldom."""
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = [job.get("scrape_interval", config["global"]["scrape_interval"]) for job in config["scrape_configs"]]

    assert max(int(interval.removesuffix("s")) for interval in jobs) == int(source["jsonData"]["timeInterval"][:-1])
