"""The table of scripts/verify-metrics.sh is what the system needs, no more and no less; and the script is one that an
old bash and any POSIX tools can run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from dispatcher.wire.promql import DEFAULT_SIGNALS
from exporter.catalogue import CATALOGUE
from tests.attendance import unavailable
from tests.house.tree import ROOT
from tests.verify_metrics.script import SCRIPT, rows

EXPOSITIONS = ROOT / "tests" / "fixtures" / "expositions"
KINDS = {"gauge": "g", "counter": "c", "histogram": "h"}
FOREIGN = re.compile(r"(?<![\w:])(?:node|container|n8n)_\w+")
PARTS = re.compile(r"_(bucket|count|sum)$")
# bash 4 and later, and GNU's own: macOS has neither.
TOO_NEW = (
    r"\bdeclare -A|\blocal -A|\btypeset -A|\bmapfile\b|\breadarray\b|\bcoproc\b|\$\{\w+(\^|,)|&>>|\|&|;;&|;&"
    r"|\$\{\w+@|\bprintf -v\b|\[\[ -v|\bwait -n\b|\$EPOCH|\bgrep -P|\bsed -i|\bsed -r|\breadlink -f|\bsort -V|\btac\b"
    r"|\bdate -d|\bstat -c|\bmktemp --|\bgensub\(|\basort|\bstrftime\(|\bPROCINFO\b|\bjq\b|\bpython"
)


def rule_files() -> list[dict[str, str]]:
    paths = sorted((ROOT / "prometheus" / "rules").glob("*.yml"))
    return [rule for path in paths for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Of every panel, variable and annotation of the dashboards."""

    def strings(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for one in value.values() for text in strings(one)]
        if isinstance(value, list):
            return [text for one in value for text in strings(one)]
        return [value] if isinstance(value, str) else []

    return [
        text
        for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
        for text in strings(json.loads(path.read_text()))
    ]


def captured() -> set[str]:
    """The foreign names that real programs have: in prose, node_exporter is none."""
    said = "\n".join(path.read_text() for path in EXPOSITIONS.glob("*.prom"))
    types = set(re.findall(r"^# TYPE (\S+)", said, re.M))
    return types | {PARTS.sub("", name) for name in types}


def foreign(texts: list[str]) -> set[str]:
    found = {name for text in texts for name in FOREIGN.findall(text)}
    known = captured()
    # Of node_exporter there is no capture; its names have a unit or are counters.
    return {
        name if name in known else PARTS.sub("", name)
        for name in found
        if name in known
        or PARTS.sub("", name) in known
        or (name.startswith("node_") and re.search(r"_(bytes|total|seconds|info)$|^node_load\d", name))
    }


def test_every_metric_of_the_catalogue_has_its_line_in_its_order():
    ours = [(metric.name, KINDS[metric.kind]) for metric in CATALOGUE]

    assert ours == [(row.name, row.kind) for row in rows() if row.group in ("models", "dispatcher")]
    assert {"ollama"} == {row.name.split("_")[0] for row in rows("models")}
    assert {"dispatcher"} == {row.name.split("_")[0] for row in rows("dispatcher")}


def test_what_the_default_signals_ask_of_the_host_and_of_cadvisor_has_its_line():
    asked = foreign([text for signal in DEFAULT_SIGNALS.values() for text in (signal.expr, signal.age_of or "")])

    assert {name for name in asked if name.startswith("node_")} <= {row.name for row in rows("host")}
    assert {name for name in asked if name.startswith("container_")} <= {row.name for row in rows("containers")}
    assert len(asked) >= 11


def test_what_rules_and_dashboards_ask_of_others_has_its_line():
    asked = foreign([*expressions(), *(rule["expr"] for rule in rule_files())])

    assert set() == asked - {row.name for row in rows()}


def test_every_rule_has_its_line_and_no_other():
    files = {rule.get("record") or rule["alert"]: "record" if "record" in rule else "alert" for rule in rule_files()}

    assert files == {row.name: row.kind for row in rows("rules")}


def test_a_rule_may_be_silent_only_if_its_expression_leaves_something_out():
    expr = {rule["record"]: rule["expr"] for rule in rule_files() if "record" in rule}

    assert [] == [
        row.name
        for row in rows("rules")
        if row.optional and "> 0" not in expr[row.name] and ">= 0" not in expr[row.name]
    ]


def test_nothing_stands_in_the_table_twice():
    names = [row.name for row in rows()]

    assert len(names) == len(set(names))
    assert [] == [name for name in names if len(name) > 64]  # they would not fit 80 columns


def test_bash_3_2_and_posix_tools_know_every_word():
    code = [line for line in SCRIPT.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]

    assert [] == [line for line in code if re.search(TOO_NEW, line)]


def test_shellcheck_has_no_objection(request: pytest.FixtureRequest):
    if shutil.which("shellcheck") is None:
        unavailable(request.config, "shellcheck", "no `shellcheck` on the PATH (Debian package of that name)")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)

    assert "" == done.stdout
