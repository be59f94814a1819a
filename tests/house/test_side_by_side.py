"""The whole suite in several processes: shown on small suites, each run by a pytest of its own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.house.test_attendance import OPT_IN, OWN_SKIP, PLAIN, WANTING, Suite
from tests.house.tree import ROOT
from tests.realparts import eventually

AUTO = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart", "0")
TWO, THREE = (("-n", count, *AUTO[2:]) for count in "23")

# Enters and leaves a log that all workers write: a line is one write.
LOGGED = """
import os, pathlib, time, pytest
{mark}
@pytest.mark.parametrize("number", range({count}))
def test_logged(number):
    log = pathlib.Path({log!r})
    with log.open("a") as file: file.write(f"in {name}\\n")
    time.sleep(0.05)
    with log.open("a") as file: file.write(f"out {name}\\n")
"""
PORTS = """
import pathlib
def test_ports(free_port):
    with pathlib.Path({log!r}).open("a") as file: file.write(" ".join(str(free_port()) for _ in range(500)) + "\\n")
"""
KEEPS = """
import pathlib, subprocess
from tests.side_by_side import one_at_a_time, serves_all
def test_starts(request):
    with one_at_a_time(request.config, "sleeper"):
        process = subprocess.Popen(["{sleep}", "600"], start_new_session=True)
        assert serves_all(request.config, "{name}", process.pid)
        pathlib.Path({log!r}).write_text(str(process.pid))
"""
FIGURES = "from tests import attendance\ndef test_it(request): attendance.tell(request.config, ['{} of them'])\n"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def more_files(suite: Suite, **sources: str) -> None:
    for name, source in sources.items():
        (suite.folder / "tests" / f"test_{name}.py").write_text(source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    said: str
    turns: list[str]
    ports: list[str]
    kept_pid: int


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run of three workers, looked at from many sides: each of their starts costs a second of CPU."""
    suite = Suite(tmp_path_factory.mktemp("ran"))
    turns, ports, kept = (suite.folder / name for name in ("turns", "ports", "kept"))
    alone, sleep = "@pytest.mark.alone", shutil.which("sleep")
    more_files(
        suite,
        wanting=WANTING,
        opt_in=OPT_IN,
        ollama=OWN_SKIP.replace("needs_docker", "needs_ollama"),
        figures_one=FIGURES.format(7),
        figures_two=FIGURES.format(9),
        ports_one=PORTS.format(log=str(ports)),
        ports_two=PORTS.format(log=str(ports)),
        ports_three=PORTS.format(log=str(ports)),
        keeps=KEEPS.format(sleep=sleep, name="sleep", log=str(kept)),
        alone=LOGGED.format(mark=alone, count=3, log=str(turns), name="alone"),
        **{f"turn_{name}": LOGGED.format(mark="", count=5, log=str(turns), name=name) for name in "abc"},
    )
    status, said = suite.run(PLAIN, *THREE)
    assert 0 == status, said
    return Ran(
        said=said,
        turns=turns.read_text().splitlines(),
        ports=ports.read_text().split(),
        kept_pid=int(kept.read_text()),
    )


def test_there_is_one_book_and_one_line_of_totals(ran):
    assert 1 == ran.said.count("= real parts =")
    assert "did not take part: no `prometheus` on the PATH" in ran.said
    assert "skipped for want of a real part: 2" in ran.said
    assert "tests/test_wanting.py::test_wanting  (Prometheus could not take part" in ran.said
    assert "25 passed, 2 skipped, 2 deselected" in ran.said


def test_figures_of_every_worker_are_at_the_end(ran):
    assert 1 == ran.said.count("= figures =")
    assert "7 of them" in ran.said and "9 of them" in ran.said


def test_a_test_that_wants_to_be_alone_is(ran):
    assert 2 * (3 * 5 + 3) == len(ran.turns)
    running = 0
    for line in ran.turns:
        assert line != "in alone" or running == 0
        running += 1 if line.startswith("in") else -1
    entered = [number for number, line in enumerate(ran.turns) if line == "in alone"]
    assert ["out alone"] * 3 == [ran.turns[number + 1] for number in entered]


def test_workers_pick_from_different_ports(ran):
    assert 1500 == len(ran.ports) == len(set(ran.ports))


def test_what_one_worker_started_for_all_is_ended_after_the_last(ran):
    eventually(
        lambda: not psutil.pid_exists(ran.kept_pid) or is_zombie(ran.kept_pid) or None,
        deadline_seconds=20,
        what="the process to be gone",
    )


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_with_ci_a_missing_part_fails_its_test_and_one_that_was_never_used_the_run(suite):
    status, said = suite.run(WANTING, *TWO, ci=True)

    assert 1 == status, said
    assert "Prometheus could not take part" in said
    assert "these did not take part: Prometheus, node_exporter, Docker" in said


def test_with_ci_a_part_that_was_never_used_fails_the_run(suite):
    status, said = suite.run(PLAIN, *TWO, ci=True)

    assert 1 == status, said
    assert "these did not take part: Prometheus, node_exporter, Docker" in said


def test_a_failure_and_a_worker_that_dies_fail_the_run(suite):
    more_files(suite, failing="def test_failing(): assert False\n", dying="def test_dying(): import os; os._exit(3)\n")

    status, said = suite.run(PLAIN, *TWO)

    assert 1 == status, said
    assert "crashed while running 'tests/test_dying.py::test_dying'" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("--seeds=3",), "workers [1 item]", id="the whole suite: several"),
        pytest.param(("tests/test_small.py",), "collected 1 item", id="a path: one"),
        pytest.param(("-s",), "collected 1 item", id="-s: one"),
    ],
)
def test_how_many_processes_there_are(suite, arguments, said):
    status, output = suite.run(PLAIN, *AUTO, *arguments)

    assert 0 == status, output
    assert said in output


def test_the_script_asks_for_it():
    script = (ROOT / "scripts" / "test").read_text()

    assert " ".join(AUTO) in script
