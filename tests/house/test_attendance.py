"""A missing part is said, and with CI=true fails the run: shown on small suites, each run by a pytest of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import attendance
from tests.house.tree import ROOT

PLAIN = "def test_plain(): pass\n"
WANTING = "def test_wanting(prometheus_factory): pass\n"
MARKED = "import pytest\n@pytest.mark.needs_prometheus\ndef test_marked(): pass\n"
OWN_SKIP = "import pytest\n@pytest.mark.needs_docker\ndef test_own(): pytest.skip('found none myself')\n"
OPT_IN = "import pytest\n@pytest.mark.chaos\ndef test_chaos(): pass\n@pytest.mark.soak\ndef test_soak(): pass\n"


class Suite:
    """A checkout with our conftest and one test module, on a PATH without any real part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tests").mkdir()
        (folder / "nothing").mkdir()
        shutil.copy(ROOT / "pyproject.toml", folder)
        for name in ("conftest.py", "attendance.py", "realparts.py", "realdocker.py", "side_by_side.py"):
            shutil.copy(ROOT / "tests" / name, folder / "tests")

    def run(self, source: str, *arguments: str, ci: bool = False) -> tuple[int, str]:
        (self.folder / "tests" / "test_small.py").write_text(source)
        environment = {key: value for key, value in os.environ.items() if key != "CI" and not key.startswith("PYTEST")}
        environment |= {"PATH": str(self.folder / "nothing"), **({"CI": "true"} if ci else {})}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        answer = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        return answer.returncode, answer.stdout + answer.stderr


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


@pytest.mark.parametrize("source", [WANTING, MARKED], ids=["by fixture", "by marker"])
def test_without_ci_a_missing_part_skips_and_is_named(suite, source):
    status, said = suite.run(source)

    assert 0 == status, said
    assert "did not take part: no `prometheus` on the PATH" in said
    assert "skipped for want of a real part: 1" in said
    assert "tests/test_small.py::test_" in said


@pytest.mark.parametrize("source", [WANTING, MARKED], ids=["by fixture", "by marker"])
def test_with_ci_a_missing_part_fails_its_test(suite, source):
    status, said = suite.run(source, ci=True)

    assert 1 == status, said
    assert "Prometheus could not take part" in said


def test_with_ci_a_full_run_in_which_a_part_was_never_used_fails(suite):
    status, said = suite.run(PLAIN, ci=True)

    assert 1 == status, said
    assert "these did not take part: Prometheus, node_exporter, Docker" in said


def test_the_option_does_what_ci_does(suite):
    status, said = suite.run(PLAIN, "--require-real-parts")

    assert 1 == status, said


@pytest.mark.parametrize("narrowed", [("tests/test_small.py",), ("-k", "plain"), ("-m", "not chaos")])
def test_with_ci_a_narrowed_run_need_not_use_every_part(suite, narrowed):
    status, said = suite.run(PLAIN, *narrowed, ci=True)

    assert 0 == status, said


def test_without_ci_a_run_without_parts_passes_and_says_so(suite):
    status, said = suite.run(PLAIN)

    assert 0 == status, said
    assert len(attendance.PARTS) == said.count("did not take part: no test that ran asked for it")


@pytest.mark.needs_docker
def test_with_ci_a_test_that_skips_itself_for_want_of_a_part_fails_the_run(suite):
    # The engine answers on its socket; the test says it found none.
    status, said = suite.run(OWN_SKIP, "tests", ci=True)

    assert 1 == status, said
    assert "found none myself" in said
    assert "these did not take part: Docker" in said


def test_opt_in_tests_are_left_out(suite):
    status, said = suite.run(OPT_IN + PLAIN)

    assert 0 == status, said
    assert "1 passed, 2 deselected" in said


def test_an_opt_in_test_runs_when_its_marker_is_named(suite):
    status, said = suite.run(OPT_IN, "-m", "chaos")

    assert 0 == status, said
    assert "1 passed, 1 deselected" in said


def test_an_ollama_that_was_given_and_does_not_answer_is_an_error(suite):
    source = "import pytest\n@pytest.mark.needs_ollama\ndef test_it(ollama_url): pass\n"

    status, said = suite.run(source, "--ollama=http://127.0.0.1:9")

    assert 1 == status, said
    assert "--ollama http://127.0.0.1:9 does not answer" in said
