"""The import contracts cover every room, and really refuse: import-linter itself runs in scripts/check."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.house.tree import ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def contracts() -> dict[str, dict[str, Any]]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["id"]: contract for contract in config["tool"]["importlinter"]["contracts"]}


def test_every_room_has_its_place_among_the_layers():
    layers = set(re.findall(r"[\w.]+", " ".join(contracts()["rooms"]["layers"])))
    package = ROOT / "dispatcher"
    rooms = {f"dispatcher.{path.stem}" for path in package.glob("*.py") if path.stem != "__init__"}
    rooms |= {f"dispatcher.{path.parent.name}" for path in package.glob("*/__init__.py")}

    assert set() == rooms - layers


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH comes before site-packages, where .venv's own .pth leads to this checkout.
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"}
    command = [str(LINT_IMPORTS), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def bare_house(tmp_path: Path) -> Path:
    """The contracts over empty rooms: what breaks one there is what the test wrote."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for init in [
        *ROOT.glob("dispatcher/*/__init__.py"),
        ROOT / "dispatcher/__init__.py",
        ROOT / "exporter/__init__.py",
    ]:
        copy = tmp_path / init.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    return tmp_path


def test_empty_rooms_keep_every_contract(bare_house):
    answer = lint(bare_house)

    assert 0 == answer.returncode, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("dispatcher/policy/x.py", "import time", "dry"),
        ("dispatcher/wire/x.py", "import httpx", "dry"),
        ("dispatcher/control/x.py", "import msgspec", "msgspec"),
        ("dispatcher/gateway/x.py", "import dispatcher.history", "rooms"),
        ("dispatcher/vocabulary/x.py", "import dispatcher.policy", "rooms"),
        ("exporter/x.py", "import dispatcher.lifecycle", "exporter"),
        ("dispatcher/lifecycle/controller.py", "import docker", "door-docker"),
        (
            "dispatcher/telemetry/x.py",
            "from prometheus_api_client import PrometheusConnect",
            "door-prometheus-api-client",
        ),
        ("dispatcher/api/x.py", "import prometheus_client", "door-prometheus-client"),
        ("dispatcher/history/x.py", "import apscheduler", "door-apscheduler"),
        ("dispatcher/api/y.py", "import aiohttp", "door-aiohttp"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(bare_house, module, statement, contract):
    (bare_house / module).write_text(f"{statement}\n")

    answer = lint(bare_house)

    assert 1 == answer.returncode, answer.stderr
    assert re.search(rf"^{re.escape(contracts()[contract]['name'])} BROKEN", answer.stdout, re.MULTILINE), answer.stdout


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("dispatcher/lifecycle/docker_provider.py", "import docker"),
        ("dispatcher/telemetry/prometheus_source.py", "import prometheus_api_client"),
        ("exporter/app.py", "import prometheus_client"),
        ("dispatcher/wire/openai.py", "import msgspec"),
    ],
)
def test_a_door_is_open_to_the_one_who_owns_it(bare_house, module, statement):
    (bare_house / module).write_text(f"{statement}\n")

    answer = lint(bare_house)

    assert 0 == answer.returncode, answer.stdout
