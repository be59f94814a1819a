"""What is written about the code is what the code says: generated pages are fresh, links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from dispatcher import config, errors
from dispatcher.control.residency import TABLE
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BY_HAND = [ROOT / "README.md", ROOT / "docs/index.md", ROOT / "docs/architecture.md"]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    loader = SourceFileLoader("scripts_reference", str(ROOT / "scripts/reference"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", ["1", "2"])
def test_no_reference_is_stale_whatever_the_machine(seed):
    environ = {**os.environ, "PYTHONHASHSEED": seed, "COLUMNS": "40", "DISPATCHER_URL": "http://elsewhere:1"}
    command = [sys.executable, str(ROOT / "scripts/reference"), "--check"]

    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd="/", timeout=100)

    assert (0, "") == (done.returncode, done.stderr + done.stdout)


def test_a_changed_page_and_one_nobody_writes_are_named(reference, tmp_path):
    (tmp_path / "docs/reference").mkdir(parents=True)
    (tmp_path / "docs/reference/errors.md").write_text("old\n")
    (tmp_path / "docs/reference/poetry.md").touch()

    problems = reference.stale(tmp_path, {"docs/reference/errors.md": "new\n"})

    assert [
        "docs/reference/errors.md is stale; run scripts/reference\n    -old\n    +new",
        "docs/reference/poetry.md is written by nothing; delete it, or add it to scripts/reference",
    ] == problems


def test_the_example_configuration_is_the_defaults():
    assert Settings() == config.load(ROOT / "dispatcher.example.yaml", {})


def test_every_error_is_drawn_in_the_tree():
    tree = errors.__doc__ or ""
    raised = [name for name, error in vars(errors).items() if isinstance(error, type) and issubclass(error, Exception)]

    assert [] == [name for name in raised if not re.search(rf"\b{name}\b", tree)]


def test_every_state_can_be_entered_and_left():
    states = set(PlaceState)

    assert states - {PlaceState.QUARANTINED} == set(TABLE.values())  # quarantine is counted, not an event: settled_down
    assert states == {state for state, _ in TABLE}


def test_every_reference_page_is_linked_from_the_index():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = sorted(path.name for path in (ROOT / "docs/reference").glob("*.md"))

    assert [] == [page for page in pages if f"(reference/{page})" not in index]


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]

    assert [] == [link for link in links if link and not (path.parent / link).exists()]


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.name)
def test_links_to_headings_lead_to_one(path):
    text = path.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = (path.parent / file if file else path).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", target, flags=re.MULTILINE)
        if anchor not in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]:
            broken.append(link)

    assert [] == broken


def test_the_rooms_drawn_in_the_architecture_are_the_rooms_there_are():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = sorted(path.name for path in (ROOT / "dispatcher").iterdir() if path.is_dir() and path.name[0] not in "._")

    assert [] == [room for room in rooms if not re.search(rf"^  {room}/", text, flags=re.MULTILINE)]


def test_the_configurations_shown_in_the_readme_load():
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)

    loaded = [
        config.parse(block, dict.fromkeys(re.findall("key_env: ([A-Z_]+)", block), "a-long-random-text"))
        for block in blocks
    ]

    assert blocks and Settings() not in loaded
