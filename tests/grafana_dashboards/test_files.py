"""The dashboards as files: what Grafana would refuse, hide or draw wrongly, and names that nobody exposes."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import yaml

from exporter.catalogue import BY_NAME
from exporter.labels import NO_MODEL, OTHER
from tests.grafana_dashboards.boards import (
    DASHBOARDS,
    PROVISIONING,
    VARIABLE,
    Json,
    annotation_queries,
    boards,
    foreign_names,
    matchers,
    metric_names,
    our_names,
    panel_queries,
    panels,
    recorded_names,
    substituted,
    used_variables,
    variables,
)

WIDTH = 24
# Ids of Grafana's own formats that ours need, and units of our own (`suffix: tok/s`).
UNITS = {"short", "percentunit", "s", "bytes", "ops", "reqps"}
OWN_UNIT = re.compile(r"suffix: \S+")
KINDS = {"row", "stat", "timeseries", "state-timeline", "bargauge", "table", "text"}
NOT_PROMETHEUS = {"type": "grafana", "uid": "-- Grafana --"}  # annotations made by hand
GRAFANAS_OWN = {"__rate_interval", "__range"}
BOARDS = boards()

each_board = pytest.mark.parametrize("board", [pytest.param(board, id=name) for name, board in BOARDS.items()])


def datasources(value: Any) -> list[Json]:
    if isinstance(value, list):
        return [found for one in value for found in datasources(one)]
    if not isinstance(value, dict):
        return []
    here = [value["datasource"]] if "datasource" in value else []
    return here + [found for key, one in value.items() if key != "datasource" for found in datasources(one)]


def drawn(board: Json) -> list[Json]:
    return [panel for panel in panels(board) if panel["type"] not in ("row", "text")]


def test_there_are_four_each_with_a_name_of_its_own():
    assert ["decisions", "models", "resources", "workflows"] == [path.stem for path in DASHBOARDS]
    assert ["Decisions", "Models", "Resources", "Workflows"] == [board["title"] for board in BOARDS.values()]
    assert 4 == len({board["uid"] for board in BOARDS.values()})


@each_board
def test_it_opens_at_a_range_refreshes_and_leads_to_the_others(board: Json):
    others = {f"/d/{other['uid']}" for other in BOARDS.values() if other["uid"] != board["uid"]}

    assert {"from": "now-1h", "to": "now"} == board["time"]
    assert (board["refresh"], ["dispatcher"], None) == ("10s", board["tags"], board["id"])
    assert 36 <= board["schemaVersion"] <= 41, "what Grafana 11 and 12 both read"
    assert others == {link["url"] for link in board["links"] if link["includeVars"] and link["keepTime"]}
    assert {"Starts", "Stops"} < {annotation["name"] for annotation in board["annotations"]["list"]}


@each_board
def test_ids_and_titles_are_told_once(board: Json):
    ids = [panel["id"] for panel in panels(board)]
    titles = [panel["title"] for panel in panels(board)]

    assert sorted(set(ids)) == sorted(ids)
    assert sorted(set(titles)) == sorted(titles)


@each_board
def test_no_panel_lies_upon_another_or_beyond_the_edge(board: Json):
    cells: dict[tuple[int, int], str] = {}
    for panel in panels(board):
        at = panel["gridPos"]
        assert at["w"] > 0, panel["title"]
        assert at["h"] > 0, panel["title"]
        assert at["x"] + at["w"] <= WIDTH, panel["title"]
        columns, rows = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        for cell in itertools.product(columns, rows):
            assert cell not in cells, f"{panel['title']} lies upon {cells[cell]}"
            cells[cell] = panel["title"]


@each_board
def test_the_first_row_are_the_answers_and_they_are_single_values(board: Json):
    first = [panel for panel in board["panels"] if panel["gridPos"]["y"] == 0]

    assert {"stat"} == {panel["type"] for panel in first}
    assert WIDTH == sum(panel["gridPos"]["w"] for panel in first)


@each_board
def test_every_panel_says_what_it_is_and_how_to_read_it(board: Json):
    for panel in panels(board):
        assert panel["type"] in KINDS, panel["title"]
        assert panel["title"].strip(), panel["id"]
        if panel["type"] != "row":
            assert len(panel["description"]) >= 30, panel["title"]
            assert panel["description"].endswith("."), panel["title"]


@each_board
def test_every_panel_has_a_unit_a_threshold_and_words_for_having_nothing(board: Json):
    for panel in drawn(board):
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS or OWN_UNIT.fullmatch(defaults["unit"]), panel["title"]
        assert len(defaults["noValue"]) > 8, f"{panel['title']}: nothing must not look like fine"
        marks = [step["value"] for step in defaults["thresholds"]["steps"]]
        assert marks[0] is None, panel["title"]
        assert sorted(marks[1:]) == marks[1:], panel["title"]


@each_board
def test_every_query_has_a_letter_of_its_own_and_a_name_for_the_legend(board: Json):
    for panel in drawn(board):
        letters = [target["refId"] for target in panel["targets"]]
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert sorted(set(letters)) == letters != [], panel["title"]
        assert sorted(set(legends)) == sorted(legends), panel["title"]
        assert "" not in legends, panel["title"]


@each_board
def test_the_datasource_is_always_the_one_that_is_chosen(board: Json):
    found = [source for source in datasources(board) if source != NOT_PROMETHEUS]

    assert {("prometheus", "${datasource}")} == {(source["type"], source["uid"]) for source in found}
    assert len(found) >= 2 * len(drawn(board)), "each panel and each of its queries"
    assert ("datasource", "prometheus") == (
        variables(board)["datasource"]["type"],
        variables(board)["datasource"]["query"],
    )


@each_board
def test_variables_that_are_used_are_defined_and_those_defined_are_used(board: Json):
    assert used_variables(board) == set(variables(board))
    for variable in variables(board).values():
        if variable["type"] == "query":
            assert (True, True) == (variable["includeAll"], variable["multi"])


def test_of_grafanas_own_variables_only_those_that_the_tests_know_are_used():
    found = {one or other for query in panel_queries() for one, other in VARIABLE.findall(query.expr)}

    assert GRAFANAS_OWN >= {name for name in found if name.startswith("__")}


def test_a_variable_that_can_be_several_is_matched_as_an_expression():
    asked = [*panel_queries(), *annotation_queries()]
    wrong = [str(query) for query in asked if re.search(r'(?<!~)"[^"]*\$(?:model|host)\b', query.expr)]

    assert [] == wrong


def test_every_metric_is_one_that_somebody_exposes():
    known = our_names() | recorded_names() | foreign_names()
    asked = [*panel_queries(), *annotation_queries()]

    assert {} == {str(query): unknown for query in asked if (unknown := metric_names(query.expr) - known)}
    assert [] == [str(query) for query in asked if not metric_names(query.expr)], "a name is found in each"


def test_nothing_rests_on_what_the_compose_files_cadvisor_does_not_say():
    """It stores no container labels and no series per CPU."""
    assert [] == [str(query) for query in panel_queries() if "container_label_" in query.expr or "cpu=" in query.expr]


def test_every_word_of_a_label_is_one_of_its_vocabulary():
    families = {**BY_NAME, **{f"{name}_{part}": metric for name, metric in BY_NAME.items() for part in PARTS}}
    wrong, seen = [], 0
    for query in [*panel_queries(), *annotation_queries()]:
        for name, label, word in matchers(query.expr):
            if name not in families or "$" in word or word in (OTHER, NO_MODEL):
                continue
            seen += 1
            known = {one.name: one.values for one in families[name].labels}
            if label not in known or word not in (known[label] or ()):
                wrong.append(f"{query}: {label}={word}")

    assert [] == wrong
    assert seen > 10


PARTS = ("bucket", "count", "sum")


def test_every_label_of_ours_that_is_grouped_by_is_one_its_metrics_have():
    wrong = []
    for query in panel_queries():
        for name, labels in grouped(query.expr):
            known = {label.name for label in BY_NAME[name].labels} | {"le", "job", "instance"}
            wrong += [f"{query}: {label}" for label in labels if label not in known]

    assert [] == wrong


def grouped(expr: str) -> list[tuple[str, list[str]]]:
    """(metric, labels) of every `sum by (a, b) (rate(metric…` of a metric of ours."""
    found = re.findall(r"by \(([^)]*)\) \((?:\w+\()*([a-z_]+)", substituted(expr))
    named = [(re.sub(r"_(bucket|count|sum)$", "", name), labels) for labels, name in found]
    return [(name, [label.strip() for label in labels.split(",")]) for name, labels in named if name in BY_NAME]


def test_the_provisioning_names_the_datasource_and_the_folder_of_the_dashboards():
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "dispatcher.yml").read_text())["providers"][0]

    assert ("prometheus", "http://prometheus:9090", True) == (source["type"], source["url"], source["isDefault"])
    assert ("file", "/var/lib/grafana/dashboards") == (provider["type"], provider["options"]["path"])
