"""What docs/install.md, docs/troubleshooting.md and docs/systemd.md tell to do can be done: scripts, commands,
services, links and the unit are there."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.cli import main
from tests.compose_stack.parts import COMPOSE_FILE, ROOT

PAGES = ("install.md", "troubleshooting.md", "systemd.md")
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
VERBS = {"build", "run", "up", "logs", "ps", "exec", "down", "stop", "restart"}  # 1.29 has no cp


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def anchor(heading: str) -> str:
    """As the forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_script_it_names_is_there(page: str) -> None:
    named = set(re.findall(r"(?<![\w/])((?:scripts|compose)/[\w./-]*\w)", text(page)))
    made = {name for name in named if name.startswith("compose/secrets")}  # by compose/prepare

    assert set() == {name for name in named - made if not (ROOT / name).exists()}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_dispatcher_exists(page: str) -> None:
    named = set(re.findall(r"(?:\.venv/bin/|[`\n])dispatcher ([a-z][a-z-]+)", text(page)))

    assert set() == named - set(main.commands)


@pytest.mark.parametrize("page", PAGES)
def test_every_compose_command_names_a_verb_and_services_there_are(page: str) -> None:
    for call in re.findall(r"docker compose ((?:--profile \w+ )*[^`\n|&;]+)", text(page)):
        words = [word.strip(".,:()") for word in re.sub(r"--profile \w+", "", call).split()]
        verb, *rest = [word for word in words if word and not word.startswith("-")]
        named = [word for word in rest if re.fullmatch(r"[a-z][a-z0-9-]+", word)]

        assert verb in VERBS, call
        if verb != "exec":
            assert [] == [name for name in named if name not in SERVICES], call


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_page_and_a_heading_there_is(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if target.startswith("http"):
            continue
        name, _, fragment = target.partition("#")
        path: Path = (ROOT / "docs" / name).resolve() if name else ROOT / "docs" / page
        assert path.exists(), target
        if fragment:
            assert fragment in {anchor(one) for one in re.findall(r"^#+ (.+)$", path.read_text(), re.M)}, target


def test_every_alert_has_its_line() -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "prometheus" / "rules" / "alerts.yml").read_text())
    told = re.findall(r"^\| \[(\w+)\]\(\.\./prometheus/runbook\.md#", text("troubleshooting.md"), re.M)

    assert alerts == told


def test_every_rule_of_a_refusal_that_is_told_is_one() -> None:
    from dispatcher.vocabulary import decision

    known = Path(decision.__file__).read_text() + (ROOT / "dispatcher" / "policy" / "filters.py").read_text()
    told = re.findall(r"rule `(\w+)`", text("troubleshooting.md"))

    assert told
    assert [] == [rule for rule in told if f'"{rule}"' not in known]


def test_a_file_that_is_to_be_made_is_not_looked_for_by_a_pattern() -> None:
    """A shell leaves a pattern that matches nothing as it is, and `tee` has no such folder."""
    assert [] == re.findall(r"tee [^\s\"]*\*\S*", text("install.md"))


def test_the_history_is_copied_whole_while_the_daemon_writes(tmp_path: Path) -> None:
    """The told program, on a database whose records are still in its log of changes."""
    (program,) = re.findall(r'python -c "([^"]+)" > history-copy', text("install.md"))
    path, copy = tmp_path / "history.sqlite", tmp_path / "copy.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE event (id INTEGER)")
        writer.execute("INSERT INTO event VALUES (7)")
        told = program.replace("/var/lib/dispatcher/history.sqlite", str(path))
        ran = subprocess.run([sys.executable, "-c", told], capture_output=True, timeout=60, check=True)
    copy.write_bytes(ran.stdout)
    with closing(sqlite3.connect(copy)) as read:
        assert [(7,)] == read.execute("SELECT id FROM event").fetchall()


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The one of docs/systemd.md, with a program there is."""
    (block,) = re.findall(r"```ini\n(.*?)```", text("systemd.md"), re.S)
    path = tmp_path / "ai-model-dispatcher.service"
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", block, flags=re.M))
    return path


def test_systemd_accepts_the_unit_and_calls_it_ok(unit: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here")

    verified = subprocess.run(
        [program, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    looked = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (0, "") == (verified.returncode, verified.stderr)
    assert 0 == looked.returncode, looked.stdout[-200:]


def test_the_unit_notifies_is_watched_and_does_not_start_again_in_vain(unit: Path) -> None:
    lines = unit.read_text().splitlines()

    assert {"Type=notify", "WatchdogSec=60", "RestartPreventExitStatus=69 78", "NoNewPrivileges=yes"} <= set(lines)
    assert not any(line.startswith(("PrivateTmp=", "ProtectProc=")) for line in lines)
