"""One dispatcher per history; two on the same containers are noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dispatcher.daemon.single import HistoryInUse, Holds
from dispatcher.vocabulary.settings import LifecycleSettings

ROOT = Path(__file__).parents[2]
HOLDING = """
    import sys
    from pathlib import Path
    from dispatcher.daemon.single import Holds
    from dispatcher.vocabulary.settings import LifecycleSettings
    holds = Holds("http://127.0.0.1:11435")
    if sys.argv[1] == "history":
        print(holds.history(Path(sys.argv[2])), flush=True)
    else:
        print(holds.fleet(LifecycleSettings(docker_labels={"stack": sys.argv[2]}), {}), flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(what: str, of: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(HOLDING), what, of]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "None\n" == process.stdout.readline()
        yield process
        process.kill()


def test_a_second_one_is_told_who_the_first_is_and_what_to_do(tmp_path):
    with (
        another("history", str(tmp_path / "history.sqlite")) as first,
        pytest.raises(HistoryInUse, match=rf"pid {first.pid}, since 20.* at http://127.0.0.1:11435.*history\.path"),
    ):
        Holds("http://127.0.0.1:2").history(tmp_path / "history.sqlite")


def test_the_same_file_by_another_name_is_the_same_history(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "state", target_is_directory=True)
    with another("history", str(tmp_path / "state" / "history.sqlite")), pytest.raises(HistoryInUse):
        Holds("").history(tmp_path / "link" / "history.sqlite")


def test_what_was_killed_holds_nothing(tmp_path):
    with another("history", str(tmp_path / "history.sqlite")):
        pass

    assert Holds("").history(tmp_path / "history.sqlite") is None
    told = json.loads((tmp_path / "history.sqlite.lock").read_text())
    assert os.getpid() == told["pid"]


def test_a_lock_without_a_name_in_it_is_a_lock_all_the_same(tmp_path):
    with another("history", str(tmp_path / "history.sqlite")):
        (tmp_path / "history.sqlite.lock").write_text("")

        with pytest.raises(HistoryInUse, match="has not left its pid"):
            Holds("").history(tmp_path / "history.sqlite")


@pytest.mark.parametrize("obstacle", ["a link", "no folder"])
def test_where_nothing_can_be_locked_it_says_so_and_goes_on(obstacle, tmp_path):
    path, lock = tmp_path / "state" / "history.sqlite", tmp_path / "state" / "history.sqlite.lock"
    if obstacle == "no folder":
        path.parent.write_text("a file where the folder should be")
    else:
        path.parent.mkdir()
        lock.symlink_to(tmp_path / "elsewhere")

    assert "cannot be locked" in (Holds("").history(path) or "")
    assert not (tmp_path / "elsewhere").exists()


def test_a_rival_for_the_same_containers_is_noticed_and_one_with_labels_of_its_own_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with another("fleet", "night") as rival:
        warning = Holds("").fleet(LifecycleSettings(docker_labels={"stack": "night"}), {})

        assert f"pid {rival.pid}" in (warning or "")
        assert "lifecycle.docker_labels" in (warning or "")
        assert Holds("").fleet(LifecycleSettings(docker_labels={"stack": "day"}), {}) is None
        assert Holds("").fleet(LifecycleSettings(docker_labels={"stack": "night"}), {"DOCKER_HOST": "tcp://b"}) is None
