"""Two daemons, one history: the second leaves with 69 and a word about the first, and touches nothing."""

from __future__ import annotations

import pytest

from tests.e2e.running import RunningDaemon, running

CONFIG = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 0.001}}


@pytest.fixture
def first(tmp_path):
    with running(tmp_path / "first", {**CONFIG, "history": {"path": str(tmp_path / "history.sqlite")}}) as daemon:
        yield daemon


def second(tmp_path) -> RunningDaemon:
    return RunningDaemon(
        folder=tmp_path / "second", config={**CONFIG, "history": {"path": str(tmp_path / "history.sqlite")}}
    )


def test_the_second_exits_with_69_and_names_the_first(first, tmp_path):
    (tmp_path / "history.sqlite").touch()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("history.sqlite*")}
    daemon = second(tmp_path).start(wait=False)
    assert daemon.popen is not None
    assert first.popen is not None

    assert 69 == daemon.popen.wait(60)
    assert f"in use by another dispatcher (pid {first.popen.pid}, since" in daemon.log()
    assert "history.path" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert before["history.sqlite.lock"] == (tmp_path / "history.sqlite.lock").stat().st_mtime_ns
    assert 200 == first.select(wait_seconds=30).status_code


def test_after_kill_9_the_next_one_takes_over_at_once(first, tmp_path):
    first.kill()
    daemon = second(tmp_path)
    try:
        assert 200 == daemon.start().select(wait_seconds=30).status_code
    finally:
        daemon.stop()
