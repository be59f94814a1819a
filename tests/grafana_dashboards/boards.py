"""The dashboards as files, and what Grafana would make of their queries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.catalogue import CATALOGUE
from tests.e2e.captures import names_of
from tests.e2e.running import ROOT
from tests.e2e.stack import EXPOSITIONS, PROMETHEUS

DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
PROVISIONING = ROOT / "grafana" / "provisioning"
# What Grafana puts in for its own variables, for a stack scraped every second that has lived for some seconds.
SUBSTITUTES: Mapping[str, str] = {"__rate_interval": "1m", "__range": "1h"}
# What each variable's `All` is.
ALL: Mapping[str, str] = {"model": "[^_].*", "host": ".*"}
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One expression, and where it stands."""

    board: str
    panel: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}: {self.expr}"


def boards() -> dict[str, Json]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS}


def panels(board: Json) -> Iterator[Json]:
    """Those in collapsed rows, too."""
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def panel_queries() -> Iterator[Query]:
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel.get("targets", []):
                yield Query(board=name, panel=panel["title"], expr=target["expr"])


def annotation_queries() -> Iterator[Query]:
    for name, board in boards().items():
        for annotation in board["annotations"]["list"]:
            if "expr" in annotation:
                yield Query(board=name, panel=f"annotation {annotation['name']}", expr=annotation["expr"])


def variables(board: Json) -> dict[str, Json]:
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def used_variables(board: Json) -> set[str]:
    """Grafana's own are left out."""
    found = {one or other for one, other in VARIABLE.findall(json.dumps(board))}
    return {name for name in found if not name.startswith("__")}


def substituted(expr: str, values: Mapping[str, str] | None = None) -> str:
    """As Grafana would send it. values: of our variables; all of a variable that is not given."""
    known = {**SUBSTITUTES, **ALL, **(values or {})}
    return VARIABLE.sub(lambda match: known[match[1] or match[2]], expr)


# ── which names there are ──


def our_names() -> set[str]:
    """As Prometheus has them: a histogram is three."""
    names = set()
    for metric in CATALOGUE:
        parts = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        names |= {metric.name + part for part in parts}
    return names


def recorded_names() -> set[str]:
    text = (PROMETHEUS / "rules" / "recording.yml").read_text(encoding="utf-8")
    return set(re.findall(r"^\s*- record: (\S+)$", text, flags=re.MULTILINE))


def foreign_names() -> set[str]:
    """Of real expositions: cAdvisor's, n8n's, and node_exporter's by name; up is Prometheus' own."""
    names = {"up", *(EXPOSITIONS / "node_names.txt").read_text(encoding="utf-8").split()}
    return names.union(*(names_of(path.read_text(encoding="utf-8")) for path in EXPOSITIONS.glob("*.prom")))


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_WORD = re.compile(r"(?<![\w:$.])[a-zA-Z_:][\w:]*")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_LANGUAGE = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def metric_names(expr: str) -> set[str]:
    """What is neither a function, a keyword, a label, a duration nor in quotes."""
    bare = re.sub(r"\[[^\]]*\]|\{[^}]*\}", "", _GROUPING.sub(" ", _STRING.sub('""', expr)))
    found = {match[0] for match in _WORD.finditer(bare) if not re.match(r"\s*\(", bare[match.end() :])}
    return {name for name in found if name.lower() not in _LANGUAGE and name not in _AGGREGATIONS}


_AGGREGATIONS = {"sum", "min", "max", "avg", "count", "topk", "bottomk", "group"}
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{((?:[^}\"]|\"(?:[^\"\\]|\\.)*\")*)\}")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"((?:[^\"\\]|\\.)*)\"")


def matchers(expr: str) -> Iterator[tuple[str, str, str]]:
    """(metric, label, word) for each alternative of each matcher."""
    for name, inside in _SELECTOR.findall(expr):
        for label, _, value in _MATCHER.findall(inside):
            for word in value.split("|"):
                yield name, label, word
