"""Opt-in: the dashboards against Grafana's own types, npm @grafana/schema with tsc (half a minute, the network)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.attendance import unavailable
from tests.grafana_dashboards.boards import Json, boards

DEADLINE_SECONDS = 240
VERSIONS = {"@grafana/schema": "12.0.2", "typescript": "5.9.3"}
PANELS = "@grafana/schema/dist/esm/raw/composable"  # not among what the package exports: read as files
MODULES = {
    "stat": "stat/panelcfg/x/StatPanelCfg_types.gen",
    "timeseries": "timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen",
    "state-timeline": "statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen",
    "bargauge": "bargauge/panelcfg/x/BarGaugePanelCfg_types.gen",
    "table": "table/panelcfg/x/TablePanelCfg_types.gen",
    "text": "text/panelcfg/x/TextPanelCfg_types.gen",
}
WITH_CUSTOM = ("timeseries", "state-timeline", "table")
# JSON has the words of enums, not their names.
LOOSE = (
    "type Loose<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T"
    " : T extends (infer U)[] ? Loose<U>[] : T extends object ? { [K in keyof T]: Loose<T[K]> } : T;"
)
# What Grafana's Prometheus plugin keeps beside the schema, in annotations and variables that it exports itself.
PLUGINS_OWN = {"expr", "step", "tagKeys", "textFormat", "titleFormat", "useValueForTime", "definition"}
pytestmark = pytest.mark.slow


def test_every_dashboard_and_every_panels_options_are_of_grafanas_types(request: pytest.FixtureRequest, tmp_path: Path):
    npm = shutil.which("npm")
    if npm is None:
        unavailable(request.config, "@grafana/schema", "no `npm` on the PATH")
    (tmp_path / "package.json").write_text(json.dumps({"private": True, "dependencies": VERSIONS}))
    subprocess.run([npm, "install", "--no-audit", "--no-fund"], cwd=tmp_path, timeout=DEADLINE_SECONDS, check=True)
    (tmp_path / "check.ts").write_text("\n".join(typed()))
    flags = ["--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "bundler", "--module", "esnext"]

    told = subprocess.run(
        ["node_modules/.bin/tsc", *flags, "check.ts"],
        cwd=tmp_path,
        timeout=DEADLINE_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (told.returncode, told.stdout)


def typed() -> list[str]:
    """A TypeScript program that is right when the dashboards are."""
    lines = ["import type { Dashboard } from '@grafana/schema';", LOOSE]
    lines += [f"import type * as {word(kind)} from './node_modules/{PANELS}/{MODULES[kind]}';" for kind in MODULES]
    for name, board in boards().items():
        lines.append(f"export const {name}: Loose<Dashboard> = {json.dumps(without_plugins_own(board))};")
        for panel in board["panels"]:
            if panel["type"] != "row":
                lines += typed_panel(name, panel)
    return lines


def typed_panel(board: str, panel: Json) -> list[str]:
    name, kind = f"{board}_{panel['id']}", panel["type"]
    lines = [f"export const {name}: Loose<{word(kind)}.Options> = {json.dumps(panel['options'])};"]
    if kind in WITH_CUSTOM:
        custom = json.dumps(panel["fieldConfig"]["defaults"]["custom"])
        lines.append(f"export const {name}_field: Loose<{word(kind)}.FieldConfig> = {custom};")
    return lines


def word(kind: str) -> str:
    return kind.replace("-", "_")


def without_plugins_own(board: Json) -> Json:
    def kept(one: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in one.items() if key not in PLUGINS_OWN}

    annotations = {"list": [kept(one) for one in board["annotations"]["list"]]}
    templating = {"list": [kept(one) for one in board["templating"]["list"]]}
    return {**board, "annotations": annotations, "templating": templating}
