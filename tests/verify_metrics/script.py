"""scripts/verify-metrics.sh: its table, and a run of it as a user has it, without a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.house.tree import ROOT

SCRIPT = ROOT / "scripts" / "verify-metrics.sh"
RUN_SECONDS = 60  # a deadline; a run takes 0.3 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """kind: g gauge, c counter, h histogram, record, alert. optional: why it may be absent; empty when it may not."""

    group: str
    name: str
    kind: str
    optional: str
    fix: str


def rows(group: str | None = None) -> list[Row]:
    table = re.search(r"<<'TABLE'\n(.*?)\nTABLE\n", SCRIPT.read_text(encoding="utf-8"), re.S)
    assert table is not None
    found = []
    for line in table[1].splitlines():
        of, name, kind, optional, fix = line.split("|")
        found.append(Row(group=of, name=name, kind=kind, optional=optional, fix=fix))
    return [row for row in found if group is None or row.group == group]


def verify(url: str, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    whole = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(environment or {})}
    return subprocess.run(
        [str(SCRIPT), "--prometheus", url, *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
        env=whole,
    )


def judged(url: str, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status, and what --json says of each metric."""
    done = verify(url, "--json", *arguments)
    told = json.loads(done.stdout)
    assert (done.returncode == 0) == told["ok"], done.stderr
    assert told["missing"] == [one["name"] for one in told["metrics"] if not one["ok"]]
    return done.returncode, {one["name"]: one for one in told["metrics"]}


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.rstrip("\n").rsplit("\n", 1)[-1]
